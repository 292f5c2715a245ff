"""After a run, no sample prompt's text is anywhere but under seal: not in logs, not in spans, not in any topic."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import re2

from seawall.local.demo import Summary
from seawall.runtime.broker import TopicPartition
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings
from seawall.runtime.topics import TopicNames
from tests.e2e.conftest import UpMesh

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: Words of a prompt in a row that nothing else would say by chance.
WORDS = 4
CHUNK = 1 << 20


def fragments(text: str) -> set[str]:
    """The text and every run of WORDS words in it, as they are and in lower case."""
    words = re.findall(r"\S+", text)
    runs = {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    return {form for run in runs | {text} for form in (run, run.lower())}


def encodings(text: str) -> set[bytes]:
    """A fragment as it might be written: UTF-8, UTF-16, JSON escapes, base64 and hex at any alignment."""
    plain = text.encode()
    forms = {plain, text.encode("utf-16-le"), text.encode("utf-16-be"), text.encode("unicode_escape")}
    forms |= {plain.hex().encode(), plain.hex().upper().encode()}
    for shift in range(3):
        # What a longer text's base64 has in its middle, whatever comes before and after.
        inner = base64.b64encode(bytes(shift) + plain)[4:]
        forms.add(inner[: len(inner) // 4 * 4 - 4])
        forms.add(base64.urlsafe_b64encode(bytes(shift) + plain)[4:][: len(inner) // 4 * 4 - 4])
    return {form for form in forms if len(form) >= 8}


class Search:
    """A search for many byte strings at once."""

    def __init__(self, prompts: Iterable[str]) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.max_mem = 1 << 30
        options.log_errors = False
        self._set = re2.Set.SearchSet(options)
        self._needles: list[bytes] = sorted(
            {form for prompt in prompts for part in fragments(prompt) for form in encodings(part)}
        )
        self._longest = max(len(needle) for needle in self._needles)
        for needle in self._needles:
            self._set.Add(b"".join(b"\\x%02x" % byte for byte in needle))
        self._set.Compile()

    def __len__(self) -> int:
        return len(self._needles)

    def found(self, data: bytes) -> list[bytes]:
        """The needles in ``data``."""
        hits: set[int] = set()
        for at in range(0, max(1, len(data)), CHUNK):
            hits.update(self._set.Match(data[at : at + CHUNK + self._longest]) or ())
        return [self._needles[hit] for hit in sorted(hits)]


def files_below(home: Path) -> Iterator[Path]:
    """Everything that the mesh wrote, but media (pictures of no prompt) and the keyset."""
    for path in sorted(home.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.relative_to(home).parts[0] not in ("content", "keys"):
            yield path


async def topic_records(kafka: KafkaSettings) -> list[tuple[TopicPartition, bytes]]:
    """Key, value and headers of every record of every topic, decompressed: on disk a search would see zstd."""
    names = TopicNames()
    reader = KafkaBroker(kafka).reader(names.all)
    await reader.start()
    records = []
    try:
        ends = {partition: end for partition, end in (await reader.end_offsets(reader.assignment())).items() if end}
        while ends:
            for partition, batch in (await reader.poll(max_records=1000, timeout=10)).items():
                for record in batch:
                    headers = b"\n".join(key.encode() + b"=" + value for key, value in record.headers)
                    records.append((partition, b"\n".join((record.key or b"", record.value or b"", headers))))
                    if record.offset + 1 >= ends.get(partition, 0):
                        ends.pop(partition, None)
    finally:
        await reader.stop()
    return records


@pytest.fixture(scope="module")
def search(samples_run: Summary) -> Search:
    texts: set[str] = set()
    for result in samples_run.results:
        submission = result.sample.make()
        texts |= {text for text in (submission.prompt, submission.negative_prompt) if text and len(text) < 10_000}
    return Search(texts)


def test_the_search_finds_what_it_looks_for() -> None:
    search = Search(["a watercolour painting of an old lighthouse", "京都の秋の庭園"])
    for planted in (
        b"log: prompt='a watercolour painting of an old lighthouse'",
        b"...WATERCOLOUR ... painting of an old lighthouse",
        "xx painting of an old xx".encode("utf-16-le"),
        b'{"p": "' + base64.b64encode(b"1a watercolour painting of an old lighthouse") + b'"}',
        b'{"p": "' + base64.b64encode(b"12a watercolour painting of an old lighthouse") + b'"}',
        b"0x" + b"watercolour painting of an".hex().encode(),
        "京都の秋の庭園".encode(),
        rb'"\u4eac\u90fd\u306e\u79cb\u306e\u5ead\u5712"',
        b"x" * (CHUNK - 10) + b"a watercolour painting of an old lighthouse",
    ):
        assert search.found(planted), planted[-60:]
    assert not search.found(b"an old lighthouse, a painting")


def test_nothing_that_was_written_holds_a_prompt(mesh: UpMesh, search: Search) -> None:
    assert len(search) > 1000
    searched = list(files_below(mesh.home))
    names = {path.name for path in searched}
    assert {"aggregator.log", "prompt_scoring.log", "prompt_scoring.relay.log", "broker.log", "up.log"} <= names
    assert any(name.endswith(".spans.jsonl") for name in names)
    assert any(name.endswith(".log") and name[:-4].isdigit() for name in names), "no segment of the broker's log"
    leaks = {str(path.relative_to(mesh.home)): search.found(path.read_bytes()) for path in searched}
    assert {path: hits for path, hits in leaks.items() if hits} == {}


async def test_no_record_of_any_topic_holds_a_prompt(mesh: UpMesh, search: Search) -> None:
    records = await topic_records(mesh.kafka)
    topics = {partition.topic for partition, _ in records}
    names = TopicNames()
    # The demo's bank is a folder: what travels on the topic of bank entries are other tests' lists, if they ran.
    # actor_history is not part of this mesh, and nobody overrides anything.
    others = {names.bank_entries, names.actor_events, names.actor_standing, names.overrides}
    assert topics | others == set(names.all), "each topic was written to, dead letters too"
    leaks = [(partition, hits) for partition, data in records if (hits := search.found(data))]
    assert leaks == []
