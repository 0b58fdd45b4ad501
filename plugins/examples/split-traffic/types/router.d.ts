// The world router of the contract in wit/, as TypeScript. `offpeak plugin new` wrote it.

declare module "offpeak:plugin/host@0.1.0" {
  export type Level =
    | "trace"
    | "debug"
    | "info"
    | "warn"
    | "error";
  const host: {
    /** Writes a line to the daemon's log, marked with the plugin's name. */
    log(level: Level, message: string): void;
    /** The plugin's own configuration table as the text of one JSON object; "{}" where there is none. */
    config(): string;
    /** Milliseconds since 1970-01-01 UTC, as the daemon sees it. It stands still during one call. */
    now(): number;
  };
  export default host;
}

declare module "offpeak:plugin/types@0.1.0" {
  /** One HTTP header. Names are lower case; a value is text. */
  export interface Header {
    name: string;
    value: string;
  }
  /** How a request is run. */
  export type Mode =
    /** The answer comes on the same call. */
    | "realtime"
    /** One request that is handed in now and fetched later. */
    | "background"
    /** Many requests in one piece, answered hours later. */
    | "batch"
    /** A self-hosted engine, in its idle time. */
    | "engine";
  /**
   * One way in which a backend sells a model. Offers come from the provider plugin and the configuration; the daemon
   * knows none of its own.
   */
  export interface Offer {
    /** The name by which a decision picks it, unique within the backend: "standard", "flex", "batch". */
    name: string;
    mode: Mode;
    /** Price in thousandths of the backend's standard real-time price: 1000 is the list price, 500 is half of it. */
    pricePermille: number;
    /** How long the provider may take, in milliseconds; 0 for "at once". */
    windowMs: number;
    /** How long it usually takes, in milliseconds: what a plan reckons with where nothing has been measured yet. */
    usualMs: number;
  }
  /** What is known about whether the provider worked on a request. It decides whether sending again could be paid twice. */
  export type DidItRun =
    /** It never left offpeak. */
    | "not-sent"
    /** The provider said that it did not run it. */
    | "refused"
    /** Nobody knows: the connection broke after the request was sent. */
    | "unknown"
    /** It ran, well or badly. */
    | "ran";
}

declare module "offpeak:plugin/routing@0.1.0" {
  export type Header = import("offpeak:plugin/types@0.1.0").Header;
  export type Offer = import("offpeak:plugin/types@0.1.0").Offer;
  /** How much of a request's body the router wants to see. The daemon never shows more. */
  export type BodyNeed =
    | { tag: "none" }
    /** The first so many bytes. */
    | { tag: "prefix"; val: number }
    | { tag: "whole" };
  /** What the daemon asks once, after loading the plugin. */
  export interface Description {
    /** For logs and the admin plane. */
    name: string;
    version: string;
    body: BodyNeed;
    /** Names (lower case) of the request headers that the router wants to see. Credentials are never shown. */
    headers: string[];
  }
  /** How long a request may take. */
  export type Sla =
    | { tag: "realtime" }
    /** Milliseconds from its arrival to the deadline. */
    | { tag: "within"; val: number };
  /** Where the SLA was found; the strongest first. */
  export type Tag =
    /** The header x-offpeak-sla. */
    | "header"
    /** The body's metadata.offpeak_sla. */
    | "metadata"
    /** The API's own ways to say it: service_tier "flex", or a Responses call with background true. */
    | "api"
    /** The tenant's default. */
    | "default";
  /** What is known about a request without understanding it. */
  export interface Envelope {
    tenant: string;
    /** The path of the API, such as "/v1/chat/completions". */
    endpoint: string;
    model: string;
    sla: Sla;
    tag: Tag;
    /** The client asked for the answer in pieces as they are made. */
    stream: boolean;
    bodyBytes: number;
    /** An estimate, before any provider has counted. */
    inputTokens: number;
    /** The most that the answer may have, where the request says so. */
    maxOutputTokens: number | null;
    /** The headers that the description asked for, as far as the request has them. */
    headers: Header[];
    /** As much of the body as the description asked for. */
    body: Uint8Array | null;
  }
  /** A backend that serves the model at this endpoint and may be used by the tenant, in the order of the configuration. */
  export interface Candidate {
    backend: string;
    /** It is taking work: no circuit breaker is open. */
    healthy: boolean;
    offers: Offer[];
  }
  /** A backend, and the offer to buy there. */
  export interface Choice {
    backend: string;
    offer: string;
    /** Instead of the deadline that follows from the SLA: milliseconds from arrival. */
    withinMs: number | null;
    /** Requests with different lane names never travel together. The empty name is the ordinary lane. */
    lane: string;
  }
  /** A refusal that the client sees, in its own API's error form. */
  export interface Rejection {
    /** 400 to 599. */
    status: number;
    /**
     * For programs, such as "model_not_found": letters, digits, "_", "-" and ".", at most 64. Otherwise they get
     * "rejected_by_router".
     */
    code: string;
    /** For people: what was wrong and what to do. */
    message: string;
    /** Seconds after which it is worth trying again. */
    retryAfterS: number | null;
  }
  /** The mode follows from the offer: real-time offers are run now, all others are kept and run later. */
  export type Decision =
    | { tag: "choose"; val: Choice }
    | { tag: "reject"; val: Rejection }
    /** No opinion: ask the next router. */
    | { tag: "pass" };
  /** What the plugin exports as `routing`. */
  export interface Routing {
    describe(): Description;
    /** `candidates` is never empty: a model that no backend serves is refused before. */
    route(envelope: Envelope, candidates: Candidate[]): Decision;
  }
}
