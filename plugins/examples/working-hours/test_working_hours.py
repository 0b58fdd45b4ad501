"""The decisions, without a daemon and without WebAssembly. `python build.py` runs these first."""

import unittest

from wit_world.exports.routing import Candidate, Decision_Choose, Decision_Pass, Envelope, Sla_Realtime, Sla_Within, Tag
from wit_world.imports.types import Mode, Offer

from working_hours import Settings, choose

HOUR_MS = 3_600_000
SETTINGS = Settings({"hurried": ["search"], "begin": 8, "end": 18})


def offer(name, mode, price_permille, usual_ms):
    return Offer(name=name, mode=mode, price_permille=price_permille, window_ms=0, usual_ms=usual_ms)


CANDIDATE = Candidate(
    backend="openai",
    healthy=True,
    offers=[offer("standard", Mode.REALTIME, 1000, 0), offer("batch", Mode.BATCH, 500, HOUR_MS)],
)


def envelope(tenant, sla):
    return Envelope(
        tenant=tenant,
        endpoint="/v1/chat/completions",
        model="gpt-4o-mini",
        sla=sla,
        tag=Tag.HEADER,
        stream=False,
        body_bytes=100,
        input_tokens=20,
        max_output_tokens=None,
        headers=[],
        body=None,
    )


class Decisions(unittest.TestCase):
    def offer_for(self, tenant, hour, hours=24):
        decision = choose(SETTINGS, hour, envelope(tenant, Sla_Within(hours * HOUR_MS)), [CANDIDATE])
        self.assertIsInstance(decision, Decision_Choose)
        return decision.value.offer

    def test_what_can_wait_is_cheap(self):
        self.assertEqual(self.offer_for("mail", 12), "batch")
        self.assertEqual(self.offer_for("search", 3), "batch")

    def test_a_hurried_tenant_is_served_at_once_by_day(self):
        self.assertEqual(self.offer_for("search", 8), "standard")
        self.assertEqual(self.offer_for("search", 18), "batch")

    def test_a_deadline_that_a_batch_would_miss_is_kept(self):
        self.assertEqual(self.offer_for("mail", 3, hours=0.5), "standard")

    def test_real_time_and_the_sick_are_left_to_others(self):
        self.assertIsInstance(choose(SETTINGS, 12, envelope("mail", Sla_Realtime()), [CANDIDATE]), Decision_Pass)
        sick = Candidate(backend="openai", healthy=False, offers=CANDIDATE.offers)
        asked = envelope("mail", Sla_Within(HOUR_MS))
        self.assertIsInstance(choose(SETTINGS, 12, asked, [sick]), Decision_Pass)

    def test_a_misspelt_setting_is_refused(self):
        with self.assertRaises(ValueError):
            Settings({"huried": []})


if __name__ == "__main__":
    unittest.main()
