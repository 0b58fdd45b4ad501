// Runs the plugin's tests and builds its component: `node build.js [--out FOLDER]`, after `npm install`.

import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const { name, offpeak } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));

function fail(why) {
  console.error(why);
  process.exit(1);
}

// The contract: beside this file, or in the sources that this file is part of.
function contract() {
  const found = [join(here, "wit"), join(here, "../../../wit")].find((folder) => existsSync(join(folder, "types.wit")));
  return found ?? fail("there is no folder wit/ beside build.js: copy wit/ of offpeak's sources there");
}

// What `npm install` has put beside this file, or else what the PATH has.
function tool(program) {
  const folders = [join(here, "node_modules/.bin"), ...(process.env.PATH ?? "").split(delimiter)];
  const found = folders.map((folder) => join(folder, program)).find((path) => existsSync(path));
  return found ?? fail(`${program} is not there: run \`npm install\` in this folder`);
}

function run(program, ...args) {
  const done = spawnSync(program, args, { cwd: here, stdio: "inherit" });
  if (done.status !== 0) {
    fail(`${[program, ...args].join(" ")} failed`);
  }
}

// Where the JavaScript is. What is written in TypeScript becomes JavaScript first, if its types are right.
function sources(out) {
  if (!existsSync(join(here, "tsconfig.json"))) {
    return here;
  }
  const compiled = join(out, "js");
  rmSync(compiled, { recursive: true, force: true });
  for (const project of ["tsconfig.json", "tsconfig.test.json"]) {
    run(tool("tsc"), "--project", project, "--outDir", compiled);
  }
  // It says that these are modules.
  copyFileSync(join(here, "package.json"), join(compiled, "package.json"));
  return compiled;
}

// What the daemon calls of each world.
const CALLED = { router: "routing", "retry-policy": "judging", "cost-policy": "costing" };

// Says what the tests or the compiler would only say in their own words, or not at all: what is no JavaScript, who asks for the
// daemon in Node, and that the daemon would find nothing to call.
function check(code) {
  const isOwn = (file) => file.endsWith(".js") && !file.split(/[\\/]/).some((part) => ["node_modules", "build"].includes(part));
  for (const file of readdirSync(code, { recursive: true }).filter(isOwn)) {
    run(process.execPath, "--check", join(code, file));
    const text = readFileSync(join(code, file), "utf8");
    const called = CALLED[offpeak.world];
    if (file === "plugin.js" && !new RegExp(`\\bexport\\b[^;]*\\b${called}\\b`).test(text)) {
      fail(`plugin.js does not export ${called}, which is what the daemon calls of a ${offpeak.world}`);
    }
    if (file !== "plugin.js" && /^\s*import\b[^;]*["']offpeak:plugin\//m.test(text)) {
      fail(`${file} imports from the daemon (offpeak:plugin/…), which is not there in the tests: import that in plugin.js alone, and hand over what is needed`);
    }
  }
}

const { values } = parseArgs({ options: { out: { type: "string", default: join(here, "build") } } });
const out = resolve(values.out);
mkdirSync(out, { recursive: true });
// Looked for at first: nobody waits for the tests to hear that it is missing.
const compiler = tool("componentize-qjs");
const code = sources(out);
check(code);
const tests = readdirSync(code).filter((file) => file.endsWith(".test.js"));
run(process.execPath, "--enable-source-maps", "--test", "--test-reporter=spec", ...tests.map((file) => join(code, file)));
const component = join(out, `${name}.wasm`);
// --stub-wasi: nothing of the system is imported, so that the daemon takes the component. --sync: its calls are plain functions.
const world = ["--wit", contract(), "--world", offpeak.world];
run(compiler, ...world, "--js", join(code, "plugin.js"), "--stub-wasi", "--sync", "--output", component);
console.log(`built ${component}; look at it with \`offpeak plugin check ${component}\``);
