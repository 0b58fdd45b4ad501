"""The decisions, without a daemon and without WebAssembly. `python build.py` runs these first."""

import unittest

from wit_world.exports.judging import (
    Attempt,
    Ending_Answered,
    Meaning_Elsewhere,
    Meaning_Permanent,
    Meaning_Temporary,
)
from wit_world.imports.types import Mode

from maintenance_hours import DAY_MS, HOUR_MS, Settings, judge

SETTINGS = Settings({"begin": 2, "end": 4, "backends": ["openai"]})


def meaning(status, hour, left_hours=24, backend="openai"):
    attempt = Attempt(
        backend=backend,
        endpoint="/v1/chat/completions",
        model="gpt-4o-mini",
        offer="batch",
        mode=Mode.BATCH,
        ending=Ending_Answered(status),
        body=b"",
        attempts=1,
        retry_after_ms=None,
        left_ms=int(left_hours * HOUR_MS),
    )
    return judge(SETTINGS, 20_000 * DAY_MS + int(hour * HOUR_MS), attempt)


class Meanings(unittest.TestCase):
    def test_maintenance_is_waited_for(self):
        self.assertEqual(meaning(503, 2.5), Meaning_Temporary(int(1.5 * HOUR_MS)))

    def test_who_cannot_wait_goes_elsewhere(self):
        self.assertIsInstance(meaning(503, 2.5, left_hours=2), Meaning_Elsewhere)

    def test_at_other_times_and_backends_it_is_as_usual(self):
        self.assertEqual(meaning(503, 12), Meaning_Temporary(None))
        self.assertEqual(meaning(503, 4), Meaning_Temporary(None))
        self.assertEqual(meaning(503, 2.5, backend="other"), Meaning_Temporary(None))

    def test_what_is_wrong_stays_wrong(self):
        self.assertIsInstance(meaning(400, 2.5), Meaning_Permanent)

    def test_wrong_settings_are_refused(self):
        for wrong in [{"beginn": 2}, {"begin": 5, "end": 4}, {"end": 25}]:
            with self.assertRaises(ValueError):
                Settings(wrong)


if __name__ == "__main__":
    unittest.main()
