// The page of a model. It asks the REST interface that /api describes, and nothing else.
import { element, shown } from "./common.js";

const find = (id) => document.getElementById(id);
const BATCH = 8; // photos in a request, so that answers come soon
const SOON = 1000, LATER = 5000; // ms between two looks at the job
const MOST_THUMBNAILS = 11;

let limits = null;
let modelStamp = "";
let isSending = false;

class Refusal extends Error {
  constructor(message, photos = []) {
    super(message);
    this.photos = photos;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refusal("The server does not answer. Is it still running?");
  }
  let content = null;
  try {
    content = await response.json();
  } catch {
    // An error of the server itself has no JSON.
  }
  if (!response.ok || content === null) {
    const text = content?.error ?? `The server answers ${response.status}; its terminal may say why.`;
    throw new Refusal(text, content?.photos);
  }
  return content;
}

const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)}%`);
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;
const megabytes = (bytes) => `${Math.floor(bytes / 2 ** 20).toLocaleString("en")} MB`;

function bar(share) {
  const inner = element("span");
  inner.style.width = `${Math.max(0, Math.min(1, share ?? 0)) * 100}%`;
  return element("span", { className: "bar", ariaHidden: "true" }, inner);
}

function say(target, text) {
  target.textContent = text;
  target.hidden = !text;
}

// Images of photos that were chosen; they stay on this machine until they are sent.
function thumbnail(file, className) {
  const url = URL.createObjectURL(file);
  const image = element("img", { className, alt: "", src: url });
  image.addEventListener("load", () => {
    image.classList.toggle("small-image", image.naturalWidth < 64);
    URL.revokeObjectURL(url);
  });
  image.addEventListener("error", () => { // no photo, or HEIC, which many browsers do not show
    URL.revokeObjectURL(url);
    image.replaceWith(element("span", { className: `${className} blank` }));
  });
  return image;
}

// ---- dropping and choosing ----

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((ok, no) => entry.file(ok, no))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((ok, no) => reader.readEntries(ok, no)); // 100 at most
    if (!some.length) return found;
    for (const child of some) if (!child.name.startsWith(".")) found.push(...(await filesOf(child)));
  }
}

// Returns the files that were dropped, also those in folders, and the name of a lone folder.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return { files: [...transfer.files], folder: "" };
  const files = (await Promise.all(entries.map(filesOf))).flat();
  return { files, folder: entries.length === 1 ? entries[0].name : "" };
}

function dropZone(zone, input, take) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same one can be chosen again
    if (files.length) take(files, "");
  });
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    zone.classList.remove("over");
    const { files, folder } = await dropped(event.dataTransfer);
    if (files.length) take(files, folder);
  });
}

// A photo that misses its zone would replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

// ---- asking ----

function answerRow(file) {
  const about = element("div", {}, element("p", { className: "file" }, element("bdi", {}, shown(file.name))));
  const row = element("li", {}, thumbnail(file, "photo"), about);
  row.tell = (answer) => {
    if (answer.error) {
      about.append(element("p", { className: "error" }, answer.classes === undefined && answer.file !== undefined ? `This photo cannot be read: ${answer.error}` : answer.error));
      return;
    }
    about.append(
      element("ol", { className: "bars" }, ...answer.classes.map(({ name, probability }) =>
        element("li", {},
          element("bdi", {}, shown(name)),
          element("span", { className: "value" }, percent(probability)),
          bar(probability)))));
  };
  return row;
}

async function predict(files) {
  const list = find("answers"), status = find("ask-status");
  list.replaceChildren();
  let done = 0;
  for (let start = 0; start < files.length; start += BATCH) {
    say(status, `Looking at ${plural(files.length, "photo")}…${done ? ` ${done} done` : ""}`);
    const some = files.slice(start, start + BATCH);
    const rows = some.map(answerRow);
    list.append(...rows);
    const form = new FormData();
    const sent = rows.filter((row, i) => {
      const tooLarge = limits && some[i].size > limits.photo_bytes;
      if (tooLarge) row.tell({ error: `It has more than ${megabytes(limits.photo_bytes)}: choose a smaller copy.` });
      else form.append("photos", some[i], some[i].name);
      return !tooLarge;
    });
    if (!sent.length) continue;
    try {
      const answers = await ask("api/predict", { method: "POST", body: form });
      sent.forEach((row, i) => row.tell(answers[i]));
    } catch (error) {
      sent.forEach((row) => row.tell({ error: error.message }));
    }
    done += some.length;
  }
  say(status, files.length > 1 ? plural(files.length, "photo") : "");
}

dropZone(find("ask"), find("ask-files"), (files) => predict(files));

// ---- learning ----

function addClass() {
  const number = find("new-classes").childElementCount;
  const name = element("input", { type: "text", autocomplete: "off", spellcheck: false, maxLength: 255 });
  name.dir = "auto";
  const input = element("input", { type: "file", multiple: true, accept: "image/*,.heic,.heif" });
  input.ariaLabel = "photos of the new class";
  const title = element("span", { className: "drop-title" }, "Drop its photos here, or ", element("span", { className: "link" }, "choose some"));
  const count = element("span", { className: "soft" }, "A few dozen are a good start");
  const zone = element("label", { className: "drop" }, input, title, count);
  const chosen = element("div", { className: "chosen" });
  const block = element("fieldset", { className: "new-class" },
    element("div", { className: "name-row" }, element("label", { className: "field" }, "Name of the class", name)),
    zone, chosen);
  block.ariaLabel = `new class ${number + 1}`;
  const remove = element("button", { type: "button", className: "remove" }, "Remove");
  remove.addEventListener("click", () => {
    block.remove();
    find("new-classes").querySelector("input").focus();
  });
  block.querySelector(".name-row").append(remove);
  block.read = () => ({ name: name.value.trim(), files: block.files });
  block.nameField = name;
  const clear = element("button", { type: "button", className: "plain" }, "Take all out");
  clear.addEventListener("click", () => {
    block.keep([]);
    input.focus();
  });
  block.keep = (files) => {
    block.files = files;
    count.textContent = files.length ? `${plural(files.length, "photo")} chosen` : "A few dozen are a good start";
    const more = files.length - MOST_THUMBNAILS;
    chosen.replaceChildren(
      ...files.slice(0, MOST_THUMBNAILS).map((file) => thumbnail(file, "")),
      ...(more > 0 ? [element("span", { className: "soft more" }, `and ${more} more`)] : []),
      ...(files.length ? [clear] : []));
  };
  block.keep([]);
  dropZone(zone, input, (files, folder) => {
    if (folder && !name.value) name.value = folder;
    block.keep([...block.files, ...files]);
  });
  find("new-classes").append(block);
  return block;
}

function mistake(classes) {
  for (const { name, files } of classes) {
    if (!name && !files.length) return "Give the class a name and choose photos of it.";
    if (!name) return "Give the class a name.";
    if (!files.length) return `Choose photos of ${shown(name)}.`;
    const large = limits && files.find((file) => file.size > limits.photo_bytes);
    if (large) return `${shown(large.name)} has more than ${megabytes(limits.photo_bytes)}: choose a smaller copy.`;
  }
  const number = classes.reduce((sum, { files }) => sum + files.length, 0);
  if (limits && number > limits.learn_photos) return `More than ${limits.learn_photos.toLocaleString("en")} photos are chosen: learn fewer at a time.`;
  const size = classes.flatMap(({ files }) => files).reduce((sum, file) => sum + file.size, 0);
  if (limits && size > limits.learn_bytes) return `The photos have more than ${megabytes(limits.learn_bytes)}: learn fewer at a time.`;
  return "";
}

function refused(text, photos = []) {
  const target = find("learn-error");
  say(target, text);
  if (!photos.length) return;
  const leaveOut = element("button", { type: "button" }, "Leave these out");
  leaveOut.addEventListener("click", () => {
    const bad = new Set(photos.map(({ file }) => file));
    for (const block of find("new-classes").children) block.keep(block.files.filter(({ name }) => !bad.has(name)));
    refused("");
    find("learn-button").focus();
  });
  target.append(
    element("ul", {}, ...photos.map(({ file, error }) => element("li", {}, element("bdi", {}, shown(file)), `: ${error}`))),
    leaveOut);
}

find("learn").addEventListener("submit", async (event) => {
  event.preventDefault();
  const blocks = [...find("new-classes").children];
  const classes = blocks.map((block) => block.read());
  const text = mistake(classes);
  refused(text);
  if (text) {
    blocks.find((block) => !block.read().name || !block.read().files.length)?.querySelector("input").focus();
    return;
  }
  const form = new FormData();
  for (const { name, files } of classes) {
    form.append("name", name); // its photos follow
    for (const file of files) form.append("photos", file, file.name);
  }
  isSending = true;
  showButtons(false);
  find("learn-button").textContent = "Sending the photos…";
  try {
    await ask("api/learn", { method: "POST", body: form });
    find("new-classes").replaceChildren();
    addClass();
  } catch (error) {
    refused(error.message, error.photos);
  }
  find("learn-button").textContent = "Learn";
  isSending = false;
  await look();
});

find("add-class").addEventListener("click", () => addClass().nameField.focus());

function showButtons(enabled) {
  for (const button of find("learn").querySelectorAll("button")) button.disabled = !enabled;
}

find("give-up").addEventListener("click", async () => {
  if (!confirm("Give it up? What was learnt of it is lost, and its photos have to be sent again.")) return;
  find("give-up").disabled = true;
  try {
    await ask("api/learn", { method: "DELETE" });
  } catch (error) {
    refused(error.message);
  }
  find("give-up").disabled = false;
  await look();
  find("new-classes").querySelector("input").focus();
});

find("go-on").addEventListener("click", async () => {
  find("go-on").disabled = true;
  refused("");
  try {
    await ask("api/learn/resume", { method: "POST" });
  } catch (error) {
    refused(error.message);
  }
  find("go-on").disabled = false;
  await look();
});

function names(classes) {
  const parts = classes.flatMap(({ name }, i) => [i ? ", " : "", element("bdi", {}, shown(name))]);
  return parts.slice(1);
}

let lastStatus = "";

function showJob(job) {
  find("job").hidden = job.status === "idle";
  if (job.status === "idle") return;
  const isLearning = job.status === "learning";
  const status = `${job.job} ${job.status} ${job.step > 0}`;
  if (status !== lastStatus) {
    lastStatus = status; // said once, not every second
    const text = {
      learning: job.step > 0 ? ["Learning ", ...names(job.classes), "…"] : ["Getting ready to learn ", ...names(job.classes), "…"],
      done: ["Learnt ", ...names(job.classes), "."],
      failed: ["Not learnt: ", ...names(job.classes), ". The model is as it was."],
      stopped: ["Stopped: ", ...names(job.classes), ". The photos and what was learnt of them are kept: mend what stopped it and go on, or give it up."],
      cancelled: ["Given up: ", ...names(job.classes), ". The model is as it was."],
      interrupted: ["Interrupted: ", ...names(job.classes), ". It goes on when the server is started again."],
    }[job.status];
    find("job-status").replaceChildren(...text);
  }
  const progress = find("job-bar");
  progress.hidden = !isLearning;
  const hasStopped = job.status === "stopped";
  find("go-on").hidden = !hasStopped;
  find("give-up").hidden = !isLearning && !hasStopped;
  if (job.num_steps && job.step) {
    progress.max = job.num_steps;
    progress.value = job.step;
  } else {
    progress.removeAttribute("value");
  }
  const number = (n) => n.toLocaleString("en");
  find("job-steps").textContent = job.num_steps && isLearning ? `step ${number(job.step)} of ${number(job.num_steps)}` : "";
  find("job-loss").textContent = isLearning && job.loss !== null && job.loss !== undefined ? `loss ${job.loss.toFixed(3)}` : "";
  drawLosses(isLearning ? job : {});
  const errors = find("job-errors");
  errors.hidden = !job.errors.length;
  errors.replaceChildren(...job.errors.map((line) => element("li", {}, line)));
  find("change").replaceChildren(...(job.change ? change(job.change) : []));
}

function drawLosses({ losses = [], num_steps: steps = 1 }) {
  const chart = find("job-losses");
  chart.toggleAttribute("hidden", losses.length < 2);
  const top = Math.max(...losses.map(([, loss]) => loss), 1e-9);
  const points = losses.map(([step, loss]) => `${((400 * step) / steps).toFixed(1)},${(78 - (74 * Math.max(0, loss)) / top).toFixed(1)}`);
  chart.firstElementChild.setAttribute("points", points.join(" "));
}

function change(found) {
  const added = found.num_classes - found.num_classes_before;
  const row = (title, before, after) => {
    const points = typeof before === "number" && typeof after === "number" ? 100 * (after - before) : null;
    const moved = points === null ? "" : points > 0.05 ? "better" : points < -0.05 ? "worse" : "";
    const sign = points > 0.05 ? "+" : points < -0.05 ? "−" : "±";
    return element("tr", {},
      element("th", { scope: "row" }, title),
      element("td", {}, percent(before)),
      element("td", {}, percent(after)),
      element("td", { className: moved }, points === null ? "–" : `${sign}${Math.abs(points).toFixed(1)}`));
  };
  const rows = found.top1_by_state.map((after, i) =>
    row(`State ${i + 1}${i + 1 === found.state ? " (new)" : ""}`, found.top1_by_state_before?.[i], after));
  const old = row("All old classes", found.top1_old_before, found.top1_old);
  const head = ["", "before", "after", "points"].map((name) => element("th", { scope: "col" }, name));
  return [
    element("p", {}, `It knows ${plural(found.num_classes, "class")} now, ${added} more than before, and classifies ${percent(found.top1)} of all test photos correctly.`),
    element("table", {},
      element("caption", {}, "Test photos classified correctly, by the state in which their class was learnt"),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows, ...(found.state > 2 ? [old] : []))),
  ];
}

async function look() {
  let wait = LATER;
  try {
    const job = await ask("api/learn");
    showJob(job);
    if (!isSending) showButtons(!["learning", "stopped"].includes(job.status));
    if (job.status === "learning") wait = SOON;
    if (job.status !== "learning" || !modelStamp) await showModel();
    say(find("trouble"), "");
  } catch (error) {
    say(find("trouble"), error.message);
  }
  clearTimeout(look.timer);
  look.timer = setTimeout(look, wait);
}

// ---- what it knows ----

async function showModel() {
  const model = await ask("api/model");
  limits = model.limits;
  const stamp = JSON.stringify([model.states, model.classes.length]);
  if (stamp === modelStamp) return;
  const version = model.states.map(({ finished }) => finished).at(-1) ?? model.states.length;
  const hadOne = Boolean(modelStamp);
  modelStamp = stamp;
  const number = plural(model.classes.length, "class");
  find("title").textContent = `A classifier of ${number}`;
  document.title = find("title").textContent;
  find("subtitle").textContent =
    `${model.method_title}, ${plural(model.states.length, "state")}; ${percent(model.accuracy.top1)} of its test photos are classified correctly.`;
  find("ask-kinds").textContent = `${model.formats.join(", ")}; up to ${megabytes(limits.photo_bytes)} each`;
  const kept = model.num_exemplars ? `, with ${plural(model.num_exemplars, "exemplar")} kept in all: one of each class is shown` : "";
  find("known").textContent =
    `${number}, learnt in ${plural(model.states.length, "state")}${kept}. ` +
    "The bars show how many of a state's test photos are classified correctly, among all classes.";
  find("states").replaceChildren(...model.states.map((state) => stateBlock(state, model, version, hadOne)));
  find("version").textContent = `· ssil_jax ${model.version}`;
}

function stateBlock(state, model, version, hadOne) {
  const isFresh = hadOne && state.state === model.states.length;
  const classes = model.classes.filter((c) => c.state === state.state).map((c) => {
    const picture = c.has_exemplar
      ? element("img", { className: "exemplar", alt: "", loading: "lazy", src: `api/classes/${c.index}/exemplar?of=${encodeURIComponent(version)}` })
      : element("span", { className: "exemplar" });
    picture.addEventListener("load", () => picture.classList.toggle("small-image", picture.naturalWidth < 64));
    return element("li", { className: isFresh ? "fresh" : "" }, picture, element("bdi", {}, shown(c.name)));
  });
  return element("div", { className: "state" },
    element("div", { className: "state-head" },
      element("h3", {}, `State ${state.state}`),
      bar(state.top1),
      element("span", { className: "soft" }, `${percent(state.top1)} correct · ${plural(state.num_classes, "class")}`)),
    element("ul", { className: "classes" }, ...classes));
}

addClass();
look();
