// The script that people write around OpenAI's batch API works as it is, with another base URL.

import assert from "node:assert/strict";
import { test } from "node:test";

import { MODEL, OpenAI, eventually, start, startOracle } from "./rig/index.js";

const CHAT = "/v1/chat/completions";
const ENDED = ["completed", "failed", "expired", "cancelled"];

const line = (number) => ({
  custom_id: `item-${number}`,
  method: "POST",
  url: CHAT,
  body: { model: MODEL, messages: [{ role: "user", content: `question ${number}` }] },
});

async function submit(client, lines, window = "24h") {
  const content = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  const file = await client.files.create({ file: new File([content], "requests.jsonl"), purpose: "batch" });
  return client.batches.create({ input_file_id: file.id, endpoint: CHAT, completion_window: window });
}

function finished(client, job) {
  return eventually(async () => {
    const batch = await client.batches.retrieve(job.id);
    return ENDED.includes(batch.status) && batch;
  }, `the end of ${job.id}`);
}

/** The lines of a result by their custom_id. */
async function read(client, fileId) {
  const text = fileId ? await (await client.files.content(fileId)).text() : "";
  const lines = text.split("\n").filter(Boolean).map(JSON.parse);
  const found = new Map(lines.map((line) => [line.custom_id, line]));
  assert.equal(found.size, lines.length, "each once");
  return found;
}

test("upload, create, poll, download, and send only what failed again", async (t) => {
  const [{ client, provider }, oracle] = await Promise.all([start(t), startOracle(t)]);
  const lines = Array.from({ length: 20 }, (_, number) => line(number));
  const broken = (number) => number % 7 === 3;
  const sent = lines.map((line, number) =>
    broken(number) ? { ...line, body: { ...line.body, messages: [] } } : line,
  );
  const job = await finished(client(), await submit(client(), sent));
  assert.equal(job.status, "completed");
  assert.deepEqual(job.request_counts, { total: 20, completed: 17, failed: 3 });

  const answers = await read(client(), job.output_file_id);
  const errors = await read(client(), job.error_file_id);
  assert.equal(answers.size, 17);
  assert.deepEqual([...errors.keys()].sort(), ["item-10", "item-17", "item-3"]);
  const expected = await oracle.client().chat.completions.create(lines[5].body);
  assert.equal(
    answers.get("item-5").response.body.choices[0].message.content,
    expected.choices[0].message.content,
  );

  const again = await finished(client(), await submit(client(), lines.filter((line) => errors.has(line.custom_id))));
  assert.deepEqual(again.request_counts, { total: 3, completed: 3, failed: 0 });
  assert.deepEqual([await provider.billed("batch"), await provider.billed("realtime")], [20, 0]);
});

test("lists, cancelling, and what does not exist", async (t) => {
  const { client, provider } = await start(t);
  await provider.nextBatchTakes(20);
  const ids = [];
  for (let number = 0; number < 3; number += 1) ids.unshift((await submit(client(), [line(number)])).id);
  const listed = [];
  for await (const job of client().batches.list({ limit: 2 })) listed.push(job.id);
  assert.deepEqual(listed, ids);

  await eventually(() => provider.calls("create_batch"), "the batch has left");
  assert(["cancelling", "cancelled"].includes((await client().batches.cancel(ids[0])).status));
  assert.equal((await finished(client(), { id: ids[0] })).status, "cancelled");
  await assert.rejects(client().batches.retrieve("batch_ffff"), OpenAI.NotFoundError);
  await assert.rejects(client().files.retrieve("file-ffff"), OpenAI.NotFoundError);
});
