"""The decisions, without a daemon and without WebAssembly. `python build.py` runs these first."""

import unittest

from wit_world.exports.costing import Outcome, Purpose, Rate, Sale, Usage
from wit_world.imports.types import DidItRun, Mode

from my_plugin import Settings, charge

SETTINGS = Settings({"payers": {"search": "research"}})
RATES = [Rate(name="input_cost_per_token", price=150_000), Rate(name="output_cost_per_token", price=600_000)]


def charged(tenant, rates, wasted=False):
    sale = Sale(
        backend="openai",
        endpoint="/v1/chat/completions",
        model="gpt-4o-mini",
        offer="batch",
        mode=Mode.BATCH,
        price_permille=500,
        rates=rates,
    )
    usage = Usage(
        input=1000,
        cached=0,
        cache_written=0,
        cache_written_one_hour=0,
        audio_input=0,
        output=100,
        reasoning=0,
        audio_output=0,
    )
    outcome = Outcome(
        tenant=tenant,
        purpose=Purpose.FIRST,
        ran=DidItRun.RAN,
        status=200,
        tier=None,
        usage=usage,
        wasted=wasted,
        took_ms=1000,
        together=1,
    )
    return charge(SETTINGS, sale, outcome)


class Charges(unittest.TestCase):
    def test_the_department_pays_half_in_a_batch(self):
        found = charged("search", RATES)
        self.assertEqual((found.tenant, found.cost, found.realtime_cost), ("research", 105_000_000, 210_000_000))
        self.assertEqual(charged("mail", RATES).tenant, "mail")

    def test_what_nobody_got_saves_nothing(self):
        self.assertEqual(charged("mail", RATES, wasted=True).realtime_cost, 0)

    def test_what_has_no_price_says_so(self):
        self.assertFalse(charged("mail", []).priced)

    def test_a_misspelt_setting_is_refused(self):
        with self.assertRaises(ValueError):
            Settings({"payer": {}})


if __name__ == "__main__":
    unittest.main()
