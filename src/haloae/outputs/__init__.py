"""What is written for people and scripts: folders of results, pictures, tables, the report."""
