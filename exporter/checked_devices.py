"""The devices that a check names: refused or opened before anything is computed, asked later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from exporter.device_runs import smallest_board, uncached
from exporter.errors import ArtifactError, InputError
from exporter.judge.device_cost import missing
from exporter.judge.reading import Reading
from exporter.models.examples import Feeds
from exporter.models.tasks import Task
from exporter.progress import Progress
from exporter.remains import Remains
from exporter.surveying import Asked, ask, asked, entry_for
from exporter.target import Target

PROFILE = "profile"  # in place of a name: every device that the profile lists


def check_named(on: Sequence[str]) -> None:
    """Refuse a device that there is not.

    Raises:
        InputError: its kind or option is unknown.
    """
    for name in on:
        if name != PROFILE:
            entry_for(name)


def opened_devices(
    profile: Target, on: Sequence[str], python: str | None, *, trusted: bool
) -> tuple[Target, list[Asked]]:
    """The profile with every device of `on` in it, and those to ask, opened.

    A device that is named must be usable; one that only the profile lists is told as missing.

    Args:
        trusted: the profile is the user's; an artifact's own does not say what runs on a device.

    Raises:
        InputError: `on` asks for the profile's devices, and it lists none.
        DeviceMissing: a device that is named cannot be used here.
    """
    known = {entry.name for entry in profile.devices}
    if PROFILE in on and not known:
        raise InputError(
            "--on profile", "needs a profile with devices", got="none", remedy="name a device."
        )
    named = [name for name in dict.fromkeys(on) if name != PROFILE]
    extra = [entry_for(name, required=True) for name in named if name not in known]
    if not trusted:
        profile = _interpreted_by(profile, None)
    profile = profile.model_copy(update={"devices": (*profile.devices, *extra)})
    if python is not None:
        profile = _interpreted_by(profile, python)
    opened = asked(profile, {*named, *(known if PROFILE in on else ())})
    for one in opened:
        if one.why is not None and one.entry.name in named:
            raise one.why
    return profile, opened


def asked_anew(
    opened: list[Asked],
    on: Sequence[str],
    here: Remains,
    profile: Target,
    task: Task,
    feeds: Feeds | None,
    progress: Progress,
) -> tuple[Reading, ...]:
    """What the opened devices say now of both models.

    Raises:
        ArtifactError: what they would be asked is not in this machine's cache.
    """
    reference = here.quality_reference or here.reference
    if reference is None or here.development is None or feeds is None:
        raise ArtifactError(
            f"--on {', '.join(on)}",
            "needs the float32 reference and the development examples, which are not in this "
            "machine's cache",
            remedy="check where it was exported, or use exporter run.",
        )
    return ask(
        opened,
        task,
        profile,
        reference,
        here.candidate,
        here.development,
        feeds,
        lambda entry: uncached(entry, progress),
        lambda entry, job: smallest_board(entry, job, profile, progress),
        progress,
    )


def readings_of(profile: Target, told: Iterable[Reading]) -> tuple[Reading, ...]:
    """One reading a device of the profile: the last that was told, else that it was not asked."""
    found = {reading.device: reading for reading in told}
    # what is required is this profile's to say, whatever the evidence says
    return tuple(
        replace(found[entry.name], required=entry.required)
        if entry.name in found
        else missing(entry, "no --on names it; exporter check --on profile asks it")
        for entry in profile.devices
    )


def _interpreted_by(profile: Target, python: str | None) -> Target:
    entries = tuple(entry.model_copy(update={"python": python}) for entry in profile.devices)
    return profile.model_copy(update={"devices": entries})
