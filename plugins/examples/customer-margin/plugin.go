// Package plugin is a cost policy for who sells on: tenants are customers, and pay the provider's price with a margin on it, each by
// the terms that the configuration has for them. Money is in whole pico-dollars, 10^-12 dollars.
package plugin

import (
	"encoding/json"
	"fmt"
	"strings"

	"customer-margin/bindings/costing"
	"customer-margin/bindings/host"
	"customer-margin/bindings/wit"
)

// Settings is the plugin's own table of the configuration.
type Settings struct {
	// Margin is what comes on top of the provider's price, in thousandths of it.
	Margin int64 `json:"margin"`
	// Customers have another margin; below zero it is a rebate.
	Customers map[string]int64 `json:"customers"`
	// Ours are the tenants that pay the provider's price as it is.
	Ours []string `json:"ours"`
}

// ReadSettings refuses what it does not know, and margins that would pay somebody for asking.
func ReadSettings(text string) (Settings, error) {
	settings := Settings{}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&settings); err != nil {
		return settings, err
	}
	if settings.Customers == nil {
		settings.Customers = map[string]int64{}
	}
	for _, tenant := range settings.Ours {
		if _, found := settings.Customers[tenant]; found {
			return settings, fmt.Errorf("%s is among customers and among ours: name it once", tenant)
		}
		settings.Customers[tenant] = 0
	}
	if settings.Margin < -1000 {
		return settings, fmt.Errorf("margin is %d: a rebate is at most -1000, which is all", settings.Margin)
	}
	for tenant, margin := range settings.Customers {
		if margin < -1000 {
			return settings, fmt.Errorf("the margin of %s is %d: a rebate is at most -1000, which is all", tenant, margin)
		}
	}
	return settings, nil
}

// Charge is the decision, from plain values alone: this is what tests call.
func Charge(settings Settings, sale costing.Sale, outcome costing.Outcome) costing.Charge {
	charge := costing.Charge{Tenant: outcome.Tenant, Priced: true}
	if outcome.Usage.IsNone() {
		return charge // the provider counted nothing, so it charges nothing
	}
	usage := outcome.Usage.Some()
	input, hasInput := price(sale, "input_cost_per_token")
	output, hasOutput := price(sale, "output_cost_per_token")
	if !hasInput || !hasOutput {
		charge.Priced = false
		return charge
	}
	cached, hasCached := price(sale, "cache_read_input_token_cost")
	if !hasCached {
		cached = input
	}
	list := int64(usage.Input-usage.Cached)*input + int64(usage.Cached)*cached + int64(usage.Output)*output
	margin, found := settings.Customers[outcome.Tenant]
	if !found {
		margin = settings.Margin
	}
	charge.Cost = thousandths(thousandths(list, int64(sale.PricePermille)), 1000+margin)
	// What nobody got would not have been bought in real time.
	if !outcome.Wasted {
		charge.RealtimeCost = thousandths(list, 1000+margin)
	}
	return charge
}

// thousandths of an amount, rounded up: who sells on does not pay the rest.
func thousandths(amount, of int64) int64 {
	return (amount*of + 999) / 1000
}

func price(sale costing.Sale, name string) (int64, bool) {
	for _, rate := range sale.Rates {
		if rate.Name == name {
			return rate.Price, true
		}
	}
	return 0, false
}

// Describe is called once, when the daemon loads the plugin. A wrong configuration is refused here.
func Describe() costing.Description {
	defer told()
	settled()
	return costing.Description{Name: "customer-margin", Version: "1"}
}

// Assess is called for outcomes, many at a time; wit/cost-policy.wit of offpeak's sources, and the types in bindings/costing, say
// with what.
func Assess(sale costing.Sale, outcomes []costing.Outcome) wit.Result[[]costing.Charge, string] {
	defer told()
	charges := make([]costing.Charge, 0, len(outcomes))
	for _, outcome := range outcomes {
		charges = append(charges, Charge(settled(), sale, outcome))
	}
	return wit.Ok[[]costing.Charge, string](charges)
}

var read *Settings

// settled reads the settings once: the daemon hands over the same ones as long as this instance lives.
func settled() Settings {
	if read == nil {
		settings, err := ReadSettings(host.Config())
		if err != nil {
			panic(err)
		}
		read = &settings
	}
	return *read
}

// told says why a call panics: the daemon says of it what was logged before.
func told() {
	if why := recover(); why != nil {
		host.Log(host.LevelError, fmt.Sprint(why))
		panic(why)
	}
}
