"""Every setting in one frozen, checked object: RAGBLAME_* variables over ragblame.toml over defaults.

Unknown keys are errors, because a misspelt setting that is silently ignored costs an on-call night.
"""

import os
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from ragblame.errors import SettingsError

ENV_PREFIX = "RAGBLAME_"
CONFIG_NAME = "ragblame.toml"
ANY_MODEL = "*"  # in ``scorer_wrote``: whatever a trace says about its model


def default_data_dir() -> Path:
    """The user's data folder: $XDG_DATA_HOME/ragblame or ~/.local/share/ragblame."""
    root = os.environ.get("XDG_DATA_HOME")
    return (Path(root) if root else Path.home() / ".local" / "share") / "ragblame"


class Settings(BaseSettings):
    """All settings; construct with ``load_settings()``.

    Raises ``SettingsError`` (from ``load_settings``) when a key is unknown or a value is malformed.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, toml_file=CONFIG_NAME, extra="forbid", frozen=True, case_sensitive=False
    )

    database_url: SecretStr | None = None  # any libpq URL or keyword string; None: the embedded server
    data_dir: Path = Field(default_factory=default_data_dir)  # embedded server, spool
    app: str = "default"  # name of the host chain when the handler is given none

    scorer: str | None = None  # folder or name of the causal LM; None: the shipped small model
    scorer_wrote: tuple[str, ...] = ()  # models, by their names in traces, that the scorer is; "*": all
    threads: Annotated[int, Field(ge=1, le=256)] | None = None  # torch threads; None: its default
    max_exact_chunks: Annotated[int, Field(ge=1, le=12)] = 10  # with more, shares are sampled
    sampled_coalitions: Annotated[int, Field(ge=4, le=16_384)] = (
        256  # scored at most where shares are sampled
    )
    sampled_precision: Annotated[float, Field(ge=0)] = 0.05  # nats; sampling stops at this standard error
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16  # coalitions scored per forward
    cache_bytes: Annotated[int, Field(ge=0)] = 1 << 29  # keys and values that coalitions may share at once

    support_model: str = "shipped"  # reads the text; "none", or folder or name of a token classifier

    recompute_scores: bool = True  # of chunks whose retriever told none, from pgvector, in the worker
    recompute_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0  # for distances and for ranks of a table
    embeddings: str | None = None  # "module:name" of the corpus' embedding model; None: all-MiniLM-L6-v2

    probe_url: SecretStr | None = None  # of a role with SELECT only, on the corpus; None: database_url
    probe_seconds: Annotated[float, Field(gt=0, le=60)] = 3.0  # of PostgreSQL's time for one span
    probe_corpora: tuple[dict[str, str | int], ...] = ()  # foreign tables; see docs/probe.md
    probe_spans: Annotated[int, Field(ge=0, le=64)] = 8  # flagged spans of an answer it is asked about
    probe_freshness: bool = False  # also whether a newer row contradicts a supported value

    capture_max_field: Annotated[int, Field(ge=1_000)] = 1_000_000  # code points kept of any one text
    capture_max_chunks: Annotated[int, Field(ge=1, le=32_768)] = 200  # chunks kept of one trace
    capture_sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the answers recorded
    capture_metadata_keys: tuple[str, ...] | None = None  # the host's metadata that is kept; None: all
    redact_secrets: bool = True  # passwords, keys, tokens
    redact_personal: bool = False  # e-mail, phone, card, IBAN; off: it may be what the answers are about
    redact_with: str | None = None  # own rule, as "module:function"; see docs/privacy.md
    queue_max_traces: Annotated[int, Field(ge=1)] = 10_000  # waiting in memory for the writer
    queue_max_bytes: Annotated[int, Field(ge=1_000_000)] = 64_000_000
    spool_max_bytes: Annotated[int, Field(ge=0)] = 512_000_000  # on disk while PostgreSQL is away
    flush_timeout: Annotated[float, Field(ge=0)] = 5.0  # seconds a process waits at exit

    ui_port: Annotated[int, Field(ge=1, le=65_535)] = 8501
    ui_address: str = "127.0.0.1"  # nothing protects an open port: loopback unless a proxy does

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: arguments, environment, ragblame.toml."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


@cache
def load_settings() -> Settings:
    """Read the settings once per process. Raises ``SettingsError`` naming the key."""
    try:
        known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
        )
        if unknown:
            raise SettingsError(
                f"unknown setting {unknown[0]}: check the spelling; known are {', '.join(sorted(known))}"
            )
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise SettingsError(
            f"setting {key}: {first['msg']}; correct {ENV_PREFIX}{key.upper()} or {key} in {CONFIG_NAME}"
        ) from error
    except (SourceError, ValueError, OSError) as error:
        raise SettingsError(f"{CONFIG_NAME} cannot be read ({error}); correct or remove it") from error
