// Package plugin is a retry policy: near its deadline a request that passes is run at once, and errors that the configuration names
// are final.
package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"my-plugin/bindings/host"
	"my-plugin/bindings/judging"
	"my-plugin/bindings/wit"
)

const hurry = 600_000 // in milliseconds

// passing are the statuses of an answer that may be another one later.
var passing = []uint16{408, 409, 429}

// Settings is the plugin's own table of the configuration.
type Settings struct {
	Permanent []string `json:"permanent"`
}

// ReadSettings refuses what it does not know.
func ReadSettings(text string) (Settings, error) {
	var settings Settings
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&settings)
	return settings, err
}

// Meaning is the decision, from plain values alone: this is what tests call.
func Meaning(settings Settings, attempt judging.Attempt) judging.Meaning {
	body := string(attempt.Body)
	named := func(text string) bool { return strings.Contains(body, text) }
	if isWrong(attempt.Ending) || slices.ContainsFunc(settings.Permanent, named) {
		return judging.MakeMeaningPermanent()
	}
	if attempt.LeftMs < hurry {
		return judging.MakeMeaningRunNow()
	}
	return judging.MakeMeaningTemporary(wit.None[uint64]())
}

// isWrong says whether it is the request's own fault.
func isWrong(ending judging.Ending) bool {
	if ending.Tag() != judging.EndingAnswered {
		return false
	}
	return ending.Answered() < 500 && !slices.Contains(passing, ending.Answered())
}

// Describe is called once, when the daemon loads the plugin. A wrong configuration is refused here.
func Describe() judging.Description {
	defer told()
	settled()
	return judging.Description{Name: "my-plugin", Version: "1"}
}

// Judge is called for each attempt that failed; wit/retry-policy.wit of offpeak's sources, and the types in bindings/judging, say
// with what.
func Judge(attempt judging.Attempt) judging.Meaning {
	defer told()
	return Meaning(settled(), attempt)
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
