"""What stands in docs/deploy is what its tools take, and says of the service what is so."""

import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from haloae.errors import ConfigError
from haloae.server.safety import read_tokens
from haloae.server.settings import Settings, read_settings

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"


def tool(name: str) -> str:
    """Where a program is, else the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_the_container_file_has_no_fault_that_its_linter_knows() -> None:
    found = subprocess.run(
        [tool("hadolint"), DEPLOY / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_the_container_runs_as_nobody_in_particular_and_asks_for_its_health() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert any("/v2/health/ready" in line for line in lines)


def test_the_unit_is_one_that_systemd_takes_and_keeps_to_itself(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    unit = tmp_path / "haloae.service"
    text = (DEPLOY / "haloae.service").read_text()
    # Which stands on the machine that the unit is for.
    unit.write_text(text.replace("/opt/haloae/bin/haloae", "/bin/true"))
    found = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    security = [analyze, "security", "--offline=yes", "--threshold=20", unit]
    assert subprocess.run(security, capture_output=True, check=False).returncode == 0


def test_the_settings_are_all_there_are_as_they_are_by_default() -> None:
    assert read_settings(DEPLOY / "serve.toml") == Settings()
    text = (DEPLOY / "serve.toml").read_text()
    for section, value in Settings():
        if not isinstance(value, BaseModel):
            continue  # a list of tables, of which none is there by default
        assert f"[{section}]" in text
        for name in type(value).model_fields:
            assert f"\n{name} = " in text or f"\n# {name} = " in text, f"{section}.{name}"


def test_the_tokens_must_be_replaced_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="at least 20 characters"):
        read_tokens(DEPLOY / "tokens.toml")
