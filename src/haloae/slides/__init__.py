"""Images of any size, gigapixels and more: read by regions, scored by tiles, in constant memory."""
