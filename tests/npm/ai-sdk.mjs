// What the AI SDK makes of the relay's OpenAI front. node ai-sdk.mjs URL KEY PROMPT: prints JSON, one object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [url, apiKey, prompt] = process.argv.slice(2);
const settings = { name: "relay", baseURL: `${url}/v1`, apiKey, includeUsage: true };
const model = createOpenAICompatible(settings)("default");
const stranger = createOpenAICompatible({ ...settings, apiKey: "relay_wrong" })("default");
const weather = tool({
  description: "The weather in a city.",
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
  execute: async ({ city }) => `21 degrees in ${city}`,
});

/** Name and status of what went wrong. */
async function errorOf(action) {
  try {
    await action();
    return null;
  } catch (error) {
    return { api: APICallError.isInstance(error), status: error.statusCode, message: error.message };
  }
}

const streamed = streamText({ model, prompt: `${prompt} text` });
const pieces = [];
for await (const piece of streamed.textStream) pieces.push(piece);

const whole = await generateText({ model, prompt: `${prompt} text` });

const steps = { model, prompt: `${prompt} tool`, tools: { weather }, stopWhen: stepCountIs(2) };
const called = await generateText(steps);
const calling = streamText(steps);
const parts = [];
for await (const part of calling.fullStream) parts.push(part.type);

const broken = [];
for await (const part of streamText({ model, prompt: `${prompt} cut`, onError() {} }).fullStream) {
  if (part.type === "text-delta") broken.push(part.text);
  if (part.type === "error") broken.push({ error: part.error?.message ?? String(part.error) });
}

console.log(
  JSON.stringify({
    streamed: { pieces, reason: await streamed.finishReason, usage: await streamed.usage, reasoning: await streamed.reasoningText },
    whole: { text: whole.text, reason: whole.finishReason, usage: whole.usage, id: whole.response.headers["x-request-id"] },
    called: { text: called.text, results: called.steps[0].toolResults.map(({ output }) => output) },
    calling: { text: await calling.text, parts: [...new Set(parts)] },
    broken,
    refused: await errorOf(() => generateText({ model: stranger, prompt, maxRetries: 0 })),
  }),
);
