"""What was seen where: every search that ran, and for every row the places it had in them."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

from ragblame.corpus import ProbeSearch, ProbeText, ProbeWay, Sighting
from ragblame.retriever.probe_vectors import Listing, Ranked
from ragblame.retriever.probe_words import WordListing

RRF: Final = 60  # strength of a row: the sum of 1 / (60 + rank) over its sightings, as in search.py


class Sightings:
    """Collects the results of one request."""

    def __init__(self) -> None:
        self.searches: list[ProbeSearch] = []
        self._seen: dict[str, list[Sighting]] = defaultdict(list)
        # the rows of each list that a scan made exact, also those too far down to be seen
        self._exact: dict[tuple[ProbeText, bool], dict[str, tuple[Ranked, float]]] = {}

    def of(self, id: str) -> tuple[Sighting, ...]:
        """The sightings of a row, strongest first."""
        return tuple(sorted(self._seen.get(id, ()), key=lambda seen: (not seen.is_exact, seen.rank)))

    def strongest(self) -> list[str]:
        """Row ids by how high and how often they were seen."""
        strength = {id: sum(1 / (RRF + seen.rank) for seen in found) for id, found in self._seen.items()}
        return sorted(strength, key=lambda id: (-strength[id], id))

    def has_rank(self, id: str, text: ProbeText, *, is_filtered: bool) -> bool:
        """Whether the row's exact rank by vectors is known."""
        return any(
            seen.text is text
            and seen.way is ProbeWay.NEAREST
            and seen.is_filtered is is_filtered
            and seen.is_exact
            for seen in self._seen.get(id, ())
        )

    def add_list(
        self, listing: Listing, way: ProbeWay, *, most: int | None = None, also: Collection[str] = ()
    ) -> None:
        """One search by vectors; rows beyond ``most`` count only where they are known or among ``also``."""
        self._note(way, listing, listing.is_filtered)
        if way is ProbeWay.NEAREST and listing.is_exact:
            key = (listing.text, listing.is_filtered)
            self._exact[key] = {row.id: (row, listing.seconds) for row in listing.rows}
        for row in listing.rows:
            if most is None or row.rank <= most or row.id in self._seen or row.id in also:
                self._see(row, listing.text, way, listing.is_filtered, listing.is_exact, listing.seconds)

    def add_from_lists(self, ids: Sequence[str]) -> None:
        """These rows, which other searches found, where they stand further down in an exact list."""
        for (text, is_filtered), rows in self._exact.items():
            for id in ids:
                if id in rows and not self.has_rank(id, text, is_filtered=is_filtered):
                    row, seconds = rows[id]
                    self._see(row, text, ProbeWay.NEAREST, is_filtered, True, seconds)

    def add_ranks(self, listing: Listing) -> None:
        """Ranks that were counted or estimated; an exact list without the row bounds the estimate."""
        least = len(self._exact.get((listing.text, listing.is_filtered), ())) + 1
        for row in listing.rows:
            if self.has_rank(row.id, listing.text, is_filtered=listing.is_filtered):
                continue
            place = row.rank if listing.is_exact else max(row.rank, least)
            bounded = Ranked(id=row.id, distance=row.distance, rank=place, rank_then=row.rank_then)
            self._see(
                bounded,
                listing.text,
                ProbeWay.NEAREST,
                listing.is_filtered,
                listing.is_exact,
                listing.seconds,
            )

    def add_words(self, listing: WordListing) -> None:
        """One search by words."""
        self._note(listing.way, listing, False)
        for place, (id, measure) in enumerate(listing.rows, start=1):
            row = Ranked(id=id, distance=measure, rank=place)
            self._see(row, listing.text, listing.way, False, listing.is_exact, listing.seconds)

    def _see(
        self, row: Ranked, text: ProbeText, way: ProbeWay, is_filtered: bool, is_exact: bool, seconds: float
    ) -> None:
        self._seen[row.id].append(
            Sighting(
                text=text,
                way=way,
                is_filtered=is_filtered,
                rank=row.rank,
                is_exact=is_exact,
                rank_then=row.rank_then,
                measure=float(row.distance),
                seconds=seconds,
            )
        )

    def _note(self, way: ProbeWay, listing: Listing | WordListing, is_filtered: bool) -> None:
        self.searches.append(
            ProbeSearch(
                text=listing.text,
                way=way,
                is_filtered=is_filtered,
                is_exact=listing.is_exact,
                is_complete=listing.is_complete,
                found=len(listing.rows),
                seconds=listing.seconds,
                note=listing.note,
            )
        )
