// A router by size: of what can wait, large requests take the cheapest offer that usually keeps their deadline, and small ones
// the cheapest that runs at once, since a batch saves little on them.

#include "router.h" // `offpeak plugin build` writes it to build/bindings/: the contract's types, with their documentation

#include <stdlib.h>
#include <string.h>

typedef exports_offpeak_plugin_routing_envelope_t envelope_t;
typedef exports_offpeak_plugin_routing_list_candidate_t candidates_t;
typedef exports_offpeak_plugin_routing_candidate_t candidate_t;
typedef exports_offpeak_plugin_routing_decision_t decision_t;
typedef offpeak_plugin_types_offer_t offer_t;

// The plugin's own table of the configuration.
typedef struct {
  uint64_t large; // input tokens
} settings_t;

// What was chosen; no offer where there is nothing to choose.
typedef struct {
  const candidate_t *candidate;
  const offer_t *offer;
} found_t;

// Reads `{"large":2000}`, with or without spaces; false if it is anything else but that or an empty table.
static bool read_settings(const char *json, size_t length, settings_t *settings) {
  char text[64];
  size_t written = 0;
  for (size_t i = 0; i < length; i++) {
    if (strchr(" \t\r\n", json[i]) != NULL && json[i] != '\0') {
      continue;
    }
    if (written == sizeof text - 1) {
      return false;
    }
    text[written++] = json[i];
  }
  text[written] = '\0';
  settings->large = 1000;
  if (strcmp(text, "{}") == 0) {
    return true;
  }
  const char *name = "{\"large\":";
  if (strncmp(text, name, strlen(name)) != 0) {
    return false;
  }
  const char *number = text + strlen(name);
  char *end;
  settings->large = strtoull(number, &end, 10);
  return *number >= '0' && *number <= '9' && strcmp(end, "}") == 0;
}

// The decision, from plain values alone: this is what tests call.
static found_t choose(const settings_t *settings, const envelope_t *envelope, const candidates_t *candidates) {
  found_t found = {NULL, NULL};
  if (envelope->sla.tag != EXPORTS_OFFPEAK_PLUGIN_ROUTING_SLA_WITHIN) {
    return found; // real time is the next router's business
  }
  bool is_large = envelope->input_tokens >= settings->large;
  for (size_t i = 0; i < candidates->len; i++) {
    const candidate_t *candidate = &candidates->ptr[i];
    for (size_t j = 0; candidate->healthy && j < candidate->offers.len; j++) {
      const offer_t *offer = &candidate->offers.ptr[j];
      bool fits = offer->usual_ms <= envelope->sla.val.within &&
                  (is_large || offer->mode == OFFPEAK_PLUGIN_TYPES_MODE_REALTIME);
      if (fits && (found.offer == NULL || offer->price_permille < found.offer->price_permille)) {
        found = (found_t){candidate, offer};
      }
    }
  }
  return found;
}

// Read once: the daemon hands over the same settings as long as this instance lives.
static const settings_t *settings(void) {
  static settings_t settings;
  static bool is_read = false;
  if (!is_read) {
    router_string_t json;
    offpeak_plugin_host_config(&json);
    is_read = read_settings((const char *)json.ptr, json.len, &settings);
    router_string_free(&json);
    if (!is_read) {
      router_string_t why;
      router_string_set(&why, "the settings must be { large = TOKENS }");
      offpeak_plugin_host_log(OFFPEAK_PLUGIN_HOST_LEVEL_ERROR, &why);
      abort(); // which refuses the plugin: `describe` comes here first
    }
  }
  return &settings;
}

// What the daemon calls; wit/router.wit says when and with what. What comes in belongs to these functions, what goes out to
// the daemon.

void exports_offpeak_plugin_routing_describe(exports_offpeak_plugin_routing_description_t *ret) {
  settings();
  router_string_dup(&ret->name, "by-size");
  router_string_dup(&ret->version, "1");
  ret->body.tag = EXPORTS_OFFPEAK_PLUGIN_ROUTING_BODY_NEED_NONE;
  ret->headers = (router_list_string_t){NULL, 0};
}

void exports_offpeak_plugin_routing_route(envelope_t *envelope, candidates_t *candidates, decision_t *ret) {
  found_t found = choose(settings(), envelope, candidates);
  if (found.offer == NULL) {
    ret->tag = EXPORTS_OFFPEAK_PLUGIN_ROUTING_DECISION_PASS;
  } else {
    ret->tag = EXPORTS_OFFPEAK_PLUGIN_ROUTING_DECISION_CHOOSE;
    exports_offpeak_plugin_routing_choice_t *choice = &ret->val.choose;
    const router_string_t *backend = &found.candidate->backend, *offer = &found.offer->name;
    router_string_dup_n(&choice->backend, (const char *)backend->ptr, backend->len);
    router_string_dup_n(&choice->offer, (const char *)offer->ptr, offer->len);
    choice->within_ms.is_some = false;
    router_string_dup(&choice->lane, "");
  }
  exports_offpeak_plugin_routing_envelope_free(envelope);
  exports_offpeak_plugin_routing_list_candidate_free(candidates);
}
