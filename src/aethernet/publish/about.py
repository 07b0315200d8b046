"""The author's statements about a model; everything else is read from the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from aethernet.errors import AetherError
from aethernet.publish import openmodeldb


@dataclass(frozen=True)
class About:
    """The author's statements, checked when they are made.

    Raises:
        AetherError: when one of them is not valid in an entry of OpenModelDB.
    """

    author: Sequence[str] = (openmodeldb.ANONYMOUS,)
    """Ids in OpenModelDB."""
    license: str | None = None
    """SPDX identifier; None if it is not stated."""
    name: str | None = None
    """Name of the files, after the scale; None uses the name of the variant."""
    description: str | None = None
    """A sentence or two; None describes the scale and the channels."""
    tags: Sequence[str] = ()
    """Ids in OpenModelDB; none: "general-upscaler", or "restoration" at 1x."""
    date: str = field(default_factory=lambda: date.today().isoformat())
    """yyyy-mm-dd."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Optional fields of an entry by name, e.g. `trainingBatchSize` and `dataset`. The
    iterations are read from the checkpoint if it counts them."""
    notes: str = ""
    """Markdown for the card, with headings from ## on."""
    url: str | None = None
    """Address of the folder from which the files will be downloaded."""

    def __post_init__(self) -> None:
        stated: dict[str, Any] = {
            "author": [*self.author],
            "license": self.license,
            "date": self.date,
            **self.training,
        }
        if self.tags:
            stated["tags"] = [*self.tags]
        if self.description is not None:
            stated["description"] = self.description
        for name, value in stated.items():
            if problem := openmodeldb.problem_of(name, value):
                raise AetherError(f"The entry's {name} {problem}.")
        if self.url and (problem := openmodeldb.problem_of_url(self.url)):
            raise AetherError(f"The URL {problem}.")
