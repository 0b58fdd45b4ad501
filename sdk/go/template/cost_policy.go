// Package plugin is a cost policy: what the provider charges by the price book, to the departments that the configuration names.
// Money is in whole pico-dollars, 10^-12 dollars.
package plugin

import (
	"encoding/json"
	"fmt"
	"strings"

	"my-plugin/bindings/costing"
	"my-plugin/bindings/host"
	"my-plugin/bindings/wit"
)

// Settings is the plugin's own table of the configuration.
type Settings struct {
	Payers map[string]string `json:"payers"`
}

// ReadSettings refuses what it does not know.
func ReadSettings(text string) (Settings, error) {
	var settings Settings
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&settings)
	return settings, err
}

// Charge is the decision, from plain values alone: this is what tests call.
func Charge(settings Settings, sale costing.Sale, outcome costing.Outcome) costing.Charge {
	charge := costing.Charge{Tenant: outcome.Tenant, Priced: true}
	if payer, found := settings.Payers[outcome.Tenant]; found {
		charge.Tenant = payer
	}
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
	full := int64(usage.Input)*input + int64(usage.Output)*output
	charge.Cost = full * int64(sale.PricePermille) / 1000
	// What nobody got would not have been bought in real time.
	if !outcome.Wasted {
		charge.RealtimeCost = full
	}
	return charge
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
	return costing.Description{Name: "my-plugin", Version: "1"}
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
