// The official SDKs as npm installed them, outside of the sources: `cargo xtask test clients` says where.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const folder = process.env.NODE_CLIENTS;
assert(folder, "NODE_CLIENTS is not set: it names the folder with the SDKs. `cargo xtask test clients` fills it.");
const load = createRequire(join(folder, "package.json"));

export const OpenAI = load("openai");
export const Anthropic = load("@anthropic-ai/sdk");
