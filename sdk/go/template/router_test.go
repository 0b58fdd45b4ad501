package plugin

import (
	"strings"
	"testing"

	"my-plugin/bindings/routing"
)

const hour = 3_600_000 // in milliseconds

var candidate = routing.Candidate{
	Backend: "openai",
	Healthy: true,
	Offers: []routing.Offer{
		{Name: "standard", PricePermille: 1000},
		{Name: "batch", PricePermille: 500, WindowMs: 24 * hour, UsualMs: hour},
	},
}

func offerFor(t *testing.T, tenant string, sla routing.Sla, candidates ...routing.Candidate) string {
	t.Helper()
	settings, err := ReadSettings(`{"hurried": ["search"]}`)
	if err != nil {
		t.Fatal(err)
	}
	decision := Choose(settings, routing.Envelope{Tenant: tenant, Sla: sla}, candidates)
	if decision.Tag() != routing.DecisionChoose {
		return "pass"
	}
	return decision.Choose().Offer
}

func TestWhoWaitsIsServedCheaply(t *testing.T) {
	sick := candidate
	sick.Healthy = false
	for _, expected := range []struct {
		tenant    string
		sla       routing.Sla
		candidate routing.Candidate
		offer     string
	}{
		{"mail", routing.MakeSlaWithin(24 * hour), candidate, "batch"},
		{"search", routing.MakeSlaWithin(24 * hour), candidate, "standard"}, // it is in a hurry
		{"mail", routing.MakeSlaWithin(hour / 2), candidate, "standard"},    // a batch would miss the deadline
		{"mail", routing.MakeSlaRealtime(), candidate, "pass"},
		{"mail", routing.MakeSlaWithin(hour), sick, "pass"},
	} {
		if offer := offerFor(t, expected.tenant, expected.sla, expected.candidate); offer != expected.offer {
			t.Errorf("%s gets %s and not %s", expected.tenant, offer, expected.offer)
		}
	}
}

func TestAMisspeltSettingIsRefused(t *testing.T) {
	if _, err := ReadSettings(`{"huried": []}`); err == nil || !strings.Contains(err.Error(), "huried") {
		t.Errorf("it says %v", err)
	}
}
