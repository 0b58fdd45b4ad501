// Package plugin is a router: what can wait takes the cheapest offer that usually keeps its deadline, and the tenants that the
// configuration names take the fastest one.
package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"my-plugin/bindings/host"
	"my-plugin/bindings/routing"
	"my-plugin/bindings/wit"
)

// Settings is the plugin's own table of the configuration.
type Settings struct {
	Hurried []string `json:"hurried"`
}

// ReadSettings refuses what it does not know.
func ReadSettings(text string) (Settings, error) {
	var settings Settings
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&settings)
	return settings, err
}

// Choose is the decision, from plain values alone: this is what tests call.
func Choose(settings Settings, envelope routing.Envelope, candidates []routing.Candidate) routing.Decision {
	if envelope.Sla.Tag() != routing.SlaWithin {
		return routing.MakeDecisionPass() // real time is the next router's business
	}
	rank := func(offer routing.Offer) uint64 { return uint64(offer.PricePermille) }
	if slices.Contains(settings.Hurried, envelope.Tenant) {
		rank = func(offer routing.Offer) uint64 { return offer.UsualMs }
	}
	best := routing.MakeDecisionPass()
	lowest := ^uint64(0)
	for _, candidate := range candidates {
		if !candidate.Healthy {
			continue
		}
		for _, offer := range candidate.Offers {
			if offer.UsualMs <= envelope.Sla.Within() && rank(offer) < lowest {
				lowest = rank(offer)
				best = routing.MakeDecisionChoose(routing.Choice{
					Backend:  candidate.Backend,
					Offer:    offer.Name,
					WithinMs: wit.None[uint64](),
				})
			}
		}
	}
	return best
}

// Describe is called once, when the daemon loads the plugin. A wrong configuration is refused here.
func Describe() routing.Description {
	defer told()
	settled()
	return routing.Description{Name: "my-plugin", Version: "1", Body: routing.MakeBodyNeedNone()}
}

// Route is called for each request; wit/router.wit of offpeak's sources, and the types in bindings/routing, say with what.
func Route(envelope routing.Envelope, candidates []routing.Candidate) routing.Decision {
	defer told()
	return Choose(settled(), envelope, candidates)
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
