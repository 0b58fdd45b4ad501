package plugin

import (
	"strings"
	"testing"

	"my-plugin/bindings/costing"
	"my-plugin/bindings/wit"
)

var sale = costing.Sale{
	PricePermille: 500,
	Rates: []costing.Rate{
		{Name: "input_cost_per_token", Price: 150_000},
		{Name: "output_cost_per_token", Price: 600_000},
	},
}

func answered(tenant string) costing.Outcome {
	return costing.Outcome{Tenant: tenant, Usage: wit.Some(costing.Usage{Input: 1000, Output: 100})}
}

func TestWhoPaysWhat(t *testing.T) {
	settings, err := ReadSettings(`{"payers": {"search": "research"}}`)
	if err != nil {
		t.Fatal(err)
	}
	wasted := answered("mail")
	wasted.Wasted = true
	unknown := sale
	unknown.Rates = nil
	for _, expected := range []struct {
		sale    costing.Sale
		outcome costing.Outcome
		charge  costing.Charge
	}{
		{sale, answered("search"), costing.Charge{Tenant: "research", Cost: 105_000_000, RealtimeCost: 210_000_000, Priced: true}},
		{sale, wasted, costing.Charge{Tenant: "mail", Cost: 105_000_000, Priced: true}},
		{sale, costing.Outcome{Tenant: "mail"}, costing.Charge{Tenant: "mail", Priced: true}}, // nothing was counted
		{unknown, answered("mail"), costing.Charge{Tenant: "mail"}},                           // there is no price
	} {
		if charge := Charge(settings, expected.sale, expected.outcome); charge != expected.charge {
			t.Errorf("%+v is charged, and not %+v", charge, expected.charge)
		}
	}
}

func TestAMisspeltSettingIsRefused(t *testing.T) {
	if _, err := ReadSettings(`{"payer": {}}`); err == nil || !strings.Contains(err.Error(), "payer") {
		t.Errorf("it says %v", err)
	}
}
