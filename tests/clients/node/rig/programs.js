// One program, started with its output in a file and ended with its test, however that ends.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

// Long enough for a loaded machine with two cores; nothing waits that long when all is well.
const LIMIT_MS = 60_000;

// As much of a log as helps to see what went wrong.
const LOG_CHARACTERS = 20_000;

/** The first true value of `look`; fails when there is none within the limit. */
export async function eventually(look, what) {
  const end = performance.now() + LIMIT_MS;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    assert(performance.now() < end, `not within ${LIMIT_MS} ms: ${what}`);
    await sleep(20);
  }
}

/** The path of a program under test, which `cargo xtask test` hands over. */
function programPath(name) {
  const path = process.env[name];
  assert(path && existsSync(path), `${name} names no program. \`cargo xtask test clients\` builds and names them.`);
  return path;
}

/** The environment without what would configure offpeak or lead an SDK elsewhere. */
function cleanEnvironment(variables) {
  const foreign = ([name]) => !/^(OFFPEAK|OPENAI|ANTHROPIC)_/.test(name);
  return { ...Object.fromEntries(Object.entries(process.env).filter(foreign)), ...variables };
}

/** A running program. */
export class Program {
  constructor(variable, args, log, variables = {}) {
    this.log = log;
    const output = openSync(log, "a");
    this.process = spawn(programPath(variable), args, {
      stdio: ["ignore", output, output],
      env: cleanEnvironment(variables),
    });
    closeSync(output);
    this.ended = new Promise((resolve) => this.process.once("exit", (code, signal) => resolve(code ?? signal)));
  }

  /** What it has written. */
  output() {
    return readFileSync(this.log, "utf8");
  }

  /** The end of what it has written, for who looks for a mistake. */
  lastWords() {
    return this.output().slice(-LOG_CHARACTERS);
  }

  /** The first match in its output; fails when the program ends before. */
  waitFor(pattern) {
    return eventually(() => {
      const found = this.output().match(pattern);
      const runs = this.process.exitCode === null && this.process.signalCode === null;
      assert(found || runs, `it ended: ${this.process.spawnargs.join(" ")}\n${this.lastWords()}`);
      return found;
    }, `${pattern} in the output of ${this.process.spawnargs.join(" ")}`);
  }

  /** Ends it as a crash does. */
  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  /** Asks it to end, waits, and returns its exit code. */
  async stop() {
    this.process.kill("SIGTERM");
    return Promise.race([this.ended, sleep(LIMIT_MS, "it does not stop", { ref: false })]);
  }
}
