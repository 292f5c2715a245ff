"""Settings of exchanges: in SEAWALL_CONFIG below ``exchanges``, or the environment. Credentials are not among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.exchanges.transport import HttpSettings
from seawall.perceptual_hashing.hamming import MAX_RADIUS
from seawall.perceptual_hashing.settings import BankSettings
from seawall.runtime.settings import Group, RoomSettings, seawall_home

#: The section of the settings file.
SECTION = "exchanges"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class PulledBank(Group):
    """The bank that an exchange is pulled into; made by the first pull. It belongs to that exchange alone."""

    name: Name
    # Who keeps the list, in words: "NCMEC".
    source: str = Field(min_length=1, max_length=200)
    # The list's own word for what it holds; it travels with every match, and rules see it.
    category: str = Field(min_length=1, max_length=100)
    # What the operator does about a match: "report", "review", …
    action: str = Field(default="", max_length=100)
    # How the listed PDQ hashes were made. python-threatexchange, and so most members: "full".
    pipeline: Pipeline = "full"
    radius: int = Field(default=MAX_RADIUS, ge=0, le=MAX_RADIUS)
    # Under which terms the list may be used.
    licence: str = Field(min_length=1, max_length=200)


class ExchangeSettings(Group):
    """One exchange."""

    kind: Literal["ncmec", "stopncii", "threatexchange"]
    bank: PulledBank
    # Where the credentials stand, as key=value lines or one JSON object: a file that is not open to everybody, which
    # wins, or the name of an environment variable. ncmec: user, password. stopncii: subscription_key, fetch_key, and
    # feedback_key for votes. threatexchange: access_token.
    credentials_file: Path | None = None
    credentials_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    # ncmec: the environment, by its name in the library: Industry, NGO_Generative_AI, test_Industry, …
    environment: str | None = None
    # ncmec: only entries of these members (ESP ids); empty: of all.
    members: frozenset[int] = frozenset()
    # threatexchange: the privacy group.
    privacy_group: int | None = None
    # Another address than the exchange's own: https, or http on this machine.
    base_url: str | None = None
    http: HttpSettings = Field(default_factory=HttpSettings)
    # An exchange that must be read afresh may take out at most this share of the bank; beyond it a person decides.
    max_sweep_share: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _of_its_kind(self) -> ExchangeSettings:
        if self.kind == "ncmec" and not self.environment:
            raise ValueError("ncmec needs an environment, for example Industry or NGO_Generative_AI")
        if self.kind == "threatexchange" and self.privacy_group is None:
            raise ValueError("threatexchange needs a privacy_group")
        return self


class ExchangesSettings(RoomSettings):
    """`seawall banks pull` and `vote`."""

    banks: BankSettings = Field(default_factory=BankSettings)
    # By name, which names the exchange in reports and in the checkpoint.
    sources: Mapping[Name, ExchangeSettings] = Field(default_factory=dict)
    # What could not be read is noted here, a file an exchange.
    set_aside: Path = Field(default_factory=lambda: seawall_home() / "set_aside")
