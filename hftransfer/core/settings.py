"""The base of every configuration model: frozen, and strict about names and ranges."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes


class Settings(BaseModel):
    """A piece of configuration that cannot change after it was checked and that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
