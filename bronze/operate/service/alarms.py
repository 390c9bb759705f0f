"""Evaluates what is wrong every few seconds, has people told, and keeps a dead man's switch.

The heartbeat URL is fetched each minute while the service could tell of trouble: not when its loop
stands still, one of its threads has a fault, alerts are not evaluated or cannot be stored, or a
channel fails. Who misses it knows that no alert may come. While alerts are open it goes on, as
somebody is told of these.
"""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import timedelta

from bronze.api.display.log_lines import LOG
from bronze.operate import controls
from bronze.operate.alerts import deadline
from bronze.operate.alerts.alerting import Advisors, Alerting
from bronze.operate.alerts.delivery import Terms
from bronze.operate.alerts.life import EVALUATIONS
from bronze.operate.conditions import SERVICE, Finding, conditions_of
from bronze.operate.service.board import Board
from bronze.operate.service.overview import Overview
from bronze.operate.service.timing import Routine
from bronze.operate.service.watch import Watch

_EVALUATED_EVERY = 5.0
_SOON = 0.5
# Longer than a channel has to answer.
_SENT_WITHIN = 12.0
_BEAT_EVERY = 60.0
_FETCH_TIMEOUT = 10.0
_CURRENT = 60.0
# Longer than two evaluations take.
_TOLD_FOR = 20.0
_ALERT_SECTIONS = ("alerts", "secrets", "lake")


class Alarms:
    """The alerts of the service."""

    def __init__(
        self,
        board: Board,
        watch: Watch,
        overview: Overview,
        terms: Terms,
        advisors: Advisors,
    ) -> None:
        """Alerts for a board, from what is seen; `start` begins to evaluate."""
        self._overview, self._watch = overview, watch
        self._board, self._terms, self._advisors = board, terms, advisors
        self._settings = board.settings
        self.alerting = Alerting(board.settings, terms=terms, advisors=advisors)
        self._evaluation = Routine("alerts", self._evaluate)
        self._heartbeat = Routine("heartbeat", self._beat)
        self._missed = ""
        self._fetching: Future[str] | None = None
        self._began = time.monotonic()
        self._is_started = False
        self._known_at: float | None = None
        self.looped_at = time.monotonic()
        self.error = ""

    @property
    def routines(self) -> list[Routine]:
        """What runs."""
        return [self._evaluation, self._heartbeat]

    def start(self) -> None:
        """Begins to evaluate."""
        self._evaluation.start()
        self._heartbeat.start()

    def kick(self) -> None:
        """Has everything evaluated now."""
        self._evaluation.kick()

    def stop(self, grace: float) -> bool:
        """Ends; whether all is stored and no message hangs."""
        for routine in self.routines:
            routine.stop()
        self._evaluation.join(grace)
        return not self._is_started or self.alerting.stop(grace)

    def evaluate_to_the_end(self, *, is_whole: bool) -> None:
        """Evaluates as often as an alert needs to open, and waits until people are told, within
        12 s; then once more, as only now it is known which channels fail: for a service that ends
        by itself.

        Args:
            is_whole: whether everything was looked at: what an earlier process has told, and is
                wrong no more, is then resolved (`bronze.operate.alerts.life`).
        """
        self._evaluation.stop()
        self._evaluation.join(_EVALUATED_EVERY)
        self._overview.see_the_end()
        for _ in range(EVALUATIONS):
            self._evaluate()
        self._wait_until_sent(lambda: ())
        for _ in range(EVALUATIONS):
            self._evaluate(is_whole=is_whole)
        self._wait_until_sent(self.alerting.troubles)

    def _wait_until_sent(self, but_for: Callable[[], Iterable[str]]) -> None:
        """Waits until no channel is owed a message, but for some."""
        alerting = self.alerting

        def is_sent() -> bool:
            alerts = alerting.alerts.values()
            return {message.channel for a in alerts for message in a.owed} <= {*but_for()}

        with alerting.changed:
            alerting.changed.wait_for(is_sent, _SENT_WITHIN)

    def _evaluate(self, *, is_whole: bool = False) -> float | None:
        if not self._is_started:
            self.alerting.start()
            self._is_started = True
        self._follow_config()
        board = self._board
        with board.changed:
            records = list(board.controls)
            settings, findings = board.settings, self._findings()
            is_known = not board.unread or bool(board.lake_error)
        if not is_known and time.monotonic() - self._began < _CURRENT:
            # What is wrong is not known yet: nothing must seem to be right again.
            return _SOON
        self.alerting.follow(records)
        if self._known_at is None:
            self._known_at = time.monotonic()
        is_new = time.monotonic() - self._known_at < _TOLD_FOR
        unseen = self._overview.unseen_since if is_new else None
        found = conditions_of(settings, self._overview.view, findings, unseen)
        self.alerting.evaluate(found, controls.silences(records), is_whole=is_whole)
        self._note_storage()
        return _EVALUATED_EVERY

    def _findings(self) -> list[Finding]:
        """What only the service itself knows to be wrong; under the lock."""
        board, now = self._board, self._board.now
        board.troubles = {k: t for k, t in board.troubles.items() if t.until > now}
        found = [Finding(k, SERVICE, t.since, t.text) for k, t in board.troubles.items()]
        found += [Finding(*key, since, text) for key, (since, text) in board.faults.items()]
        root = board.settings.lake.root
        found += [
            Finding("config_invalid", name, since, f"There is no table {name} in the source")
            for name, since in board.missing.items()
        ]
        looks = [("lake_unreachable", root, f"The lake at {root}", self._watch.lake)]
        looks += [
            ("source_unreachable", name, f"Source {name}", routine)
            for name, routine in self._watch.sources.items()
        ]
        for kind, subject, words, routine in looks:
            is_known = board.lake_error if routine is self._watch.lake else None
            silent = routine.busy_for
            if silent > _CURRENT and not is_known and subject not in board.source_errors:
                since = now - timedelta(seconds=silent)
                found.append(Finding(kind, subject, since, f"{words} does not answer"))
        return found

    def _note_storage(self) -> None:
        error = self.alerting.storage_error
        if error and error != self.error:
            LOG.warning("alerts cannot be stored", error=error)
        self.error = error

    def _follow_config(self) -> None:
        """Begins with new channels and limits where the config has changed them."""
        settings = self._board.settings
        if settings is self._settings:
            return
        if any(getattr(settings, n) != getattr(self._settings, n) for n in _ALERT_SECTIONS):
            before = self.alerting
            before.stop(_EVALUATED_EVERY)
            self.alerting = Alerting(
                settings, terms=self._terms, advisors=self._advisors, known=before.alerts
            )
            self.alerting.start()
        self._settings = settings

    def _is_well(self) -> bool:
        now = time.monotonic()
        is_current = now - max(self._evaluation.done_at, 0.0) < _CURRENT
        is_looping = now - self.looped_at < _CURRENT
        is_whole = not any(r.fault for r in (*self._watch.routines, self._overview.routine))
        can_tell = not self.error and not self.alerting.troubles()
        return is_current and is_looping and is_whole and can_tell

    def _beat(self) -> float | None:
        url = self._board.settings.alerts.heartbeat
        if url and self._is_well():
            missed = self._fetch(url)
            if missed and missed != self._missed:
                LOG.warning("heartbeat was not accepted", error=missed)
            self._missed = missed
        return _BEAT_EVERY if self._evaluation.done_at or self._evaluation.fault else 1.0

    def _fetch(self, url: str) -> str:
        # Timeouts of sockets hold for each read by itself. What hangs is not begun again beside it.
        if self._fetching is None or self._fetching.done():
            self._fetching = deadline.start(lambda: fetch(url), "bronze-heartbeat")
        try:
            return self._fetching.result(_FETCH_TIMEOUT)
        except TimeoutError:
            return f"no answer within {_FETCH_TIMEOUT:.0f} s"


def fetch(url: str) -> str:
    """Fetches a URL; why that has failed, "" if it has not."""
    request = urllib.request.Request(url, headers={"User-Agent": "bronze"})  # noqa: S310 - the config allows http and https alone
    try:
        with urllib.request.urlopen(request, timeout=_FETCH_TIMEOUT) as answer:  # noqa: S310
            answer.read(1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__
    return ""
