// The decisions, on your own machine, without a daemon and without WebAssembly. `offpeak plugin build` runs these first.

#include "by_size.c"

#include <stdio.h>

// What the daemon and the bindings would bring; no test comes here.
void offpeak_plugin_host_config(router_string_t *ret) { (void)ret, abort(); }
uint64_t offpeak_plugin_host_now(void) { abort(); }
void offpeak_plugin_host_log(offpeak_plugin_host_level_t level, router_string_t *text) { (void)level, (void)text, abort(); }
void router_string_set(router_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void router_string_dup(router_string_t *ret, const char *text) { (void)ret, (void)text, abort(); }
void router_string_dup_n(router_string_t *ret, const char *text, size_t n) { (void)ret, (void)text, (void)n, abort(); }
void router_string_free(router_string_t *text) { (void)text, abort(); }
void exports_offpeak_plugin_routing_envelope_free(envelope_t *envelope) { (void)envelope, abort(); }
void exports_offpeak_plugin_routing_list_candidate_free(candidates_t *candidates) { (void)candidates, abort(); }

static int failures = 0;

static void expect(bool is_right, const char *what) {
  if (!is_right) {
    fprintf(stderr, "wrong: %s\n", what);
    failures++;
  }
}

enum { HOUR_MS = 3600000 };

static offer_t offers[] = {
    {.mode = OFFPEAK_PLUGIN_TYPES_MODE_REALTIME, .price_permille = 1000, .usual_ms = 0},
    {.mode = OFFPEAK_PLUGIN_TYPES_MODE_REALTIME, .price_permille = 600, .usual_ms = 60000},
    {.mode = OFFPEAK_PLUGIN_TYPES_MODE_BATCH, .price_permille = 500, .usual_ms = HOUR_MS},
};

// Which of the offers a request gets; -1 if it is passed on.
static int offer_for(uint64_t tokens, uint8_t sla, uint64_t within_ms, bool healthy) {
  settings_t settings = {.large = 1000};
  candidate_t candidate = {.healthy = healthy, .offers = {offers, 3}};
  candidates_t candidates = {&candidate, 1};
  envelope_t envelope = {.input_tokens = tokens, .sla = {.tag = sla, .val = {.within = within_ms}}};
  found_t found = choose(&settings, &envelope, &candidates);
  return found.offer == NULL ? -1 : (int)(found.offer - offers);
}

static bool reads(const char *json, uint64_t large) {
  settings_t settings;
  return read_settings(json, strlen(json), &settings) && settings.large == large;
}

int main(void) {
  enum { NOW = EXPORTS_OFFPEAK_PLUGIN_ROUTING_SLA_REALTIME, WITHIN = EXPORTS_OFFPEAK_PLUGIN_ROUTING_SLA_WITHIN };
  expect(offer_for(1000, WITHIN, 24 * HOUR_MS, true) == 2, "what is large and can wait goes in a batch");
  expect(offer_for(999, WITHIN, 24 * HOUR_MS, true) == 1, "what is small runs at once, at the lower price");
  expect(offer_for(1000, WITHIN, HOUR_MS / 2, true) == 1, "a deadline that a batch would miss is kept");
  expect(offer_for(999, WITHIN, 1000, true) == 0, "and one that the cheaper offer would miss");
  expect(offer_for(1000, NOW, 0, true) == -1, "real time is left to others");
  expect(offer_for(1000, WITHIN, 24 * HOUR_MS, false) == -1, "the sick are left to others");
  expect(reads("{}", 1000) && reads("{ \"large\": 7 }", 7), "settings are read");
  expect(!reads("{\"lagre\":7}", 7) && !reads("{\"large\":\"7\"}", 7) && !reads("{\"large\":7", 7),
         "what is misspelt is refused");
  return failures == 0 ? 0 : 1;
}
