package plugin

import (
	"strings"
	"testing"

	"customer-margin/bindings/costing"
	"customer-margin/bindings/wit"
)

// sale is half price in a batch; what was cached costs a tenth.
var sale = costing.Sale{
	PricePermille: 500,
	Rates: []costing.Rate{
		{Name: "input_cost_per_token", Price: 150_000},
		{Name: "cache_read_input_token_cost", Price: 15_000},
		{Name: "output_cost_per_token", Price: 600_000},
	},
}

func answered(tenant string) costing.Outcome {
	return costing.Outcome{Tenant: tenant, Usage: wit.Some(costing.Usage{Input: 1000, Output: 100})}
}

func TestWhoPaysWhat(t *testing.T) {
	settings, err := ReadSettings(`{"margin": 200, "customers": {"big": 50, "friend": -1000}, "ours": ["wiki"]}`)
	if err != nil {
		t.Fatal(err)
	}
	wasted := answered("shop")
	wasted.Wasted = true
	cached := costing.Outcome{Tenant: "wiki", Usage: wit.Some(costing.Usage{Input: 1000, Cached: 900, Output: 100})}
	tiny := costing.Sale{PricePermille: 500, Rates: []costing.Rate{
		{Name: "input_cost_per_token", Price: 1},
		{Name: "output_cost_per_token", Price: 1},
	}}
	unknown := sale
	unknown.Rates = nil
	for _, expected := range []struct {
		about   string
		sale    costing.Sale
		outcome costing.Outcome
		charge  costing.Charge
	}{
		{"the margin", sale, answered("shop"), costing.Charge{Tenant: "shop", Cost: 126_000_000, RealtimeCost: 252_000_000, Priced: true}},
		{"its own margin", sale, answered("big"), costing.Charge{Tenant: "big", Cost: 110_250_000, RealtimeCost: 220_500_000, Priced: true}},
		{"a gift", sale, answered("friend"), costing.Charge{Tenant: "friend", Priced: true}},
		{"ours", sale, answered("wiki"), costing.Charge{Tenant: "wiki", Cost: 105_000_000, RealtimeCost: 210_000_000, Priced: true}},
		{"what was cached", sale, cached, costing.Charge{Tenant: "wiki", Cost: 44_250_000, RealtimeCost: 88_500_000, Priced: true}},
		{"what nobody got", sale, wasted, costing.Charge{Tenant: "shop", Cost: 126_000_000, Priced: true}},
		{"what was not counted", sale, costing.Outcome{Tenant: "shop"}, costing.Charge{Tenant: "shop", Priced: true}},
		{"what has no price", unknown, answered("shop"), costing.Charge{Tenant: "shop"}},
		{"a part of a unit", tiny, costing.Outcome{Tenant: "shop", Usage: wit.Some(costing.Usage{Input: 1})},
			costing.Charge{Tenant: "shop", Cost: 2, RealtimeCost: 2, Priced: true}},
	} {
		if charge := Charge(settings, expected.sale, expected.outcome); charge != expected.charge {
			t.Errorf("%s is charged %+v, and not %+v", expected.about, charge, expected.charge)
		}
	}
}

func TestWrongSettingsAreRefused(t *testing.T) {
	for _, wrong := range []struct{ text, says string }{
		{`{"margins": 5}`, "margins"},
		{`{"margin": -1001}`, "at most -1000"},
		{`{"customers": {"shop": -2000}}`, "the margin of shop"},
		{`{"customers": {"shop": 5}, "ours": ["shop"]}`, "name it once"},
	} {
		if _, err := ReadSettings(wrong.text); err == nil || !strings.Contains(err.Error(), wrong.says) {
			t.Errorf("of %s it says %v", wrong.text, err)
		}
	}
}
