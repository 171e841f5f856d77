"""Settings from flags and environment, checked once. Secrets are not among them: they stay where they are."""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.configs import explain
from jobs.outside_names import read_endpoints
from storage.errors import UserError
from storage.folder import DataFolder, default_root


def detect_devices() -> tuple[str, ...]:
    """One slot a GPU as the NVIDIA driver lists them, else the CPU; asks no torch.

    `CUDA_VISIBLE_DEVICES` is obeyed, because the workers' torch obeys it too.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(f"cuda:{index}" for index in range(len(visible_devices(visible)))) or ("cpu",)
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ("cpu",)
    gpus = [line for line in listed.splitlines() if line.startswith("GPU ")]
    return tuple(f"cuda:{index}" for index in range(len(gpus))) or ("cpu",)


def visible_devices(names: str) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` names, as CUDA reads it: up to the first -1."""
    found = [part.strip() for part in names.split(",") if part.strip()]
    return found[: found.index("-1")] if "-1" in found else found


class Settings(BaseSettings):
    """What `python app.py`, `python -m jobs` and `python -m storage` share."""

    model_config = SettingsConfigDict(env_prefix="PLUMB_", frozen=True, extra="ignore", env_ignore_empty=True)

    data: Path = Field(default_factory=default_root, description="the data folder")
    host: str = Field("127.0.0.1", description="address to listen on")
    login: bool = Field(False, description="ask for a login on a loopback address too, as behind a reverse proxy")
    port: int = Field(7860, ge=0, le=65535, description="0: any that is free")
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=detect_devices, description="device slots, as cpu or cuda:0,cuda:1"
    )
    network_slots: int = Field(2, ge=1, le=64, description="judge jobs at once")
    supervisor_idle_seconds: float = Field(
        60.0, ge=0.0, description="a supervisor with nothing to do leaves after this time"
    )

    gemini_client: Literal["google-generativeai", "google-genai"] = Field(
        "google-generativeai", description="the package that talks to Gemini; Google supports the second alone"
    )
    gemini_url: str = Field("", description="another address for Gemini's API; empty: Google's")
    openai_url: str = Field("", description="an OpenAI-compatible endpoint, as http://127.0.0.1:8000/v1")

    endpoints: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="outside models: NAME=URL,NAME=URL; keys are in PLUMB_ENDPOINT_KEY_NAME"
    )

    @field_validator("endpoints", mode="before")
    @classmethod
    def _addresses(cls, value: object) -> dict[str, str]:
        # Its UserError passes through pydantic as it is, whose own errors would quote a password in an address.
        return read_endpoints(value)

    @field_validator("devices", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip()) or detect_devices()

    @field_validator("devices")
    @classmethod
    def _known_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        strange = [name for name in value if not re.fullmatch(r"cpu|mps|cuda:\d+", name)]
        if strange or not value or len(set(value)) != len(value):
            raise ValueError("name devices as cpu or cuda:0,cuda:1, each once")
        return value

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.data.expanduser().resolve())

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the app."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_settings(**flags: object) -> Settings:
    """Flags win over environment, environment over defaults; flags that are None count as not given.

    Raises:
        UserError: a value cannot be used; the text names it.
    """
    try:
        given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
        return Settings(**given)
    except ValidationError as error:
        raise UserError(f"The settings cannot be used: {explain(error)}") from error


def local_user() -> str:
    """The operating system's user, as whom a person on this machine acts."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"
