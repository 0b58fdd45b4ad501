package plugin

import (
	"strings"
	"testing"

	"my-plugin/bindings/judging"
)

const day = 86_400_000 // in milliseconds

func TestWhatAFailureMeans(t *testing.T) {
	settings, err := ReadSettings(`{"permanent": ["image_too_large"]}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, expected := range []struct {
		status  uint16
		body    string
		left    uint64
		meaning uint8
	}{
		{503, "", day, judging.MeaningTemporary},
		{429, "", day, judging.MeaningTemporary},
		{503, "", 60_000, judging.MeaningRunNow}, // its deadline is near
		{400, "", day, judging.MeaningPermanent},
		{500, "image_too_large", day, judging.MeaningPermanent},
	} {
		ending := judging.MakeEndingAnswered(expected.status)
		attempt := judging.Attempt{Ending: ending, Body: []byte(expected.body), LeftMs: expected.left}
		if meaning := Meaning(settings, attempt).Tag(); meaning != expected.meaning {
			t.Errorf("%d %s means %d and not %d", expected.status, expected.body, meaning, expected.meaning)
		}
	}
}

func TestAMisspeltSettingIsRefused(t *testing.T) {
	if _, err := ReadSettings(`{"permament": []}`); err == nil || !strings.Contains(err.Error(), "permament") {
		t.Errorf("it says %v", err)
	}
}
