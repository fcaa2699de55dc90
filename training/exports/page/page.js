// Draws pictures in this browser with what the controls say.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { foldIn, normal, start } from "./noise.js";

const ROWS = 4; // pictures that are computed before the page shows them
const IN_TURN = "-1"; // each seed has the class that --seeds gives it
const element = (id) => document.getElementById(id);
const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const size = (shape) => shape.reduce((product, length) => product * length, 1);
let page, parameters, opened = {}, latest = 0, queue = Promise.resolve();

async function load(place) {
  const answer = await fetch(place);
  if (!answer.ok) throw new Error(`${place} is missing (${answer.status}); copy the whole folder`);
  return answer;
}

function say(text, error = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", error);
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = chosen ?? options[0][0];
  select.parentElement.hidden = options.length < 2;
}

// Offers the guidance scales that there are for the steps, and keeps the chosen one.
function offerGuidance() {
  const scales = page.samplers.filter((each) => each.steps == element("steps").value)
    .map((each) => String(each.guidance));
  const chosen = [element("guidance").value, String(page.guidance)].find((each) => scales.includes(each));
  fill(element("guidance"), scales.map((scale) => [scale, scale]), chosen);
}

function chosen() {
  const [seed, count] = [Number(element("seed").value), Number(element("count").value)];
  const [label, classes] = [element("class").value, page.classes.length];
  const inTurn = (each) => (classes ? each % classes : -1);
  return {
    sampler: page.samplers.find((each) => each.steps == element("steps").value
      && each.guidance == element("guidance").value),
    draws: Array.from({ length: count }, (_, k) => seed + k).map((each) => (
      { seed: each, label: label === IN_TURN ? inTurn(each) : Number(label) })),
  };
}

async function sessionOf({ graph }) {
  if (opened.graph !== graph) {
    await opened.session?.release();
    opened = {};
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      externalData: [{ path: page.parameters, data: parameters }],
      logSeverityLevel: 3, // errors; warnings are about parts of graphs that nothing uses
    });
    opened = { graph, session };
  }
  return opened.session;
}

// The samples of some seeds and labels, as floats.
async function sample(session, { steps, draws }, rows) {
  const count = size(page.shape);
  const starts = rows.map(({ seed }) => start(page.key, seed, count));
  const tensor = (parts, shape) => {
    const data = new Float32Array(parts.length * count);
    parts.forEach((part, k) => data.set(part, k * count));
    return new ort.Tensor("float32", data, shape);
  };
  const inputs = { noise: tensor(starts.map((each) => each.noise), [rows.length, ...page.shape]) };
  const labels = Int32Array.from(rows, (row) => row.label);
  inputs.labels = new ort.Tensor("int32", labels, [rows.length]);
  if (draws) {
    const numbers = Array.from({ length: steps }, (_, index) => index);
    const parts = numbers.flatMap((index) => starts.map((each) => normal(foldIn(each.later, index), count)));
    inputs.draws = tensor(parts, [steps, rows.length, ...page.shape]);
  }
  return (await session.run(inputs)).samples.data;
}

// Shows one sample: 127.5 (x + 1), clipped to [0, 255] and rounded.
function paint(canvas, x) {
  const [height, width, channels] = page.picture;
  const picture = new ImageData(width, height);
  if (!x.every(Number.isFinite)) throw new Error("a sample is not finite");
  for (let k = 0; k < width * height * 4; k++) {
    const value = x[Math.floor(k / 4) * channels + (channels > 1 ? k % 4 : 0)];
    picture.data[k] = k % 4 === 3 ? 255 : Math.floor(Math.min(255, Math.max(0, 127.5 * (value + 1))) + 0.5);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function showFigures(draws) {
  const grid = element("pictures");
  const [height, width] = page.picture;
  while (grid.children.length > draws.length) grid.lastChild.remove();
  while (grid.children.length < draws.length) {
    const figure = document.createElement("figure");
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.setAttribute("role", "img");
    figure.append(canvas, document.createElement("figcaption"));
    grid.append(figure);
  }
  grid.style.setProperty("--tile", `${Math.max(4.5, 24 / Math.sqrt(draws.length))}rem`);
  draws.forEach(({ seed, label }, k) => {
    const text = label < 0 ? `seed ${seed}` : `${page.classes[label]}, seed ${seed}`;
    grid.children[k].lastChild.textContent = text;
    grid.children[k].firstChild.setAttribute("aria-label", text);
  });
}

async function draw(number) {
  if (number !== latest || !element("controls").checkValidity()) return;
  const { sampler, draws } = chosen();
  say("Drawing");
  const session = await sessionOf(sampler);
  await sample(session, sampler, draws.slice(0, 1)); // the first run is slower
  showFigures(draws);
  let spent = 0;
  for (let first = 0; first < draws.length; first += ROWS) {
    if (number !== latest) return;
    const rows = draws.slice(first, first + ROWS);
    const begun = performance.now();
    const samples = await sample(session, sampler, rows);
    spent += performance.now() - begun;
    rows.forEach((_, k) => {
      const length = size(page.picture);
      const canvas = element("pictures").children[first + k].firstChild;
      paint(canvas, samples.subarray(k * length, (k + 1) * length));
    });
    await new Promise((shown) => setTimeout(shown));
  }
  const each = (spent / draws.length).toPrecision(2);
  say(`${counted(draws.length, "picture")} in ${counted(sampler.steps, "sampling step")}: ${Number(each)} ms for each`);
}

function redraw() {
  const number = ++latest;
  queue = queue.then(() => draw(number)).catch((error) => say(error.message ?? String(error), true));
}

async function open() {
  say("Loading");
  ort.env.wasm.numThreads = 1; // more need a server with headers of its own
  page = await (await load("page.json")).json();
  parameters = new Uint8Array(await (await load(`network/${page.parameters}`)).arrayBuffer());
  document.title = element("controls").ariaLabel = document.querySelector("h1").textContent = page.title;
  element("network").textContent = `${page.network}. Everything is computed in this browser.`;
  const classes = page.classes.map((name, index) => [String(index), name]);
  fill(element("class"), [[IN_TURN, "in turn"], ...classes]);
  fill(element("steps"), [...new Set(page.samplers.map((each) => String(each.steps)))].map((n) => [n, n]));
  offerGuidance();
  element("steps").addEventListener("change", offerGuidance);
  element("controls").addEventListener("change", redraw);
  element("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    element("seed").value = Number(element("seed").value) + Number(element("count").value);
    redraw();
  });
  element("controls").hidden = false;
  redraw();
}

open().catch((error) => say(error.message ?? String(error), true));
