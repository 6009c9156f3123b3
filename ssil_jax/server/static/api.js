// Shows openapi.json to a reader.
import { element } from "./common.js";

const description = await (await fetch("openapi.json")).json();
document.getElementById("title").textContent = description.info.title;
document.getElementById("about").textContent = description.info.description;

const root = new URL(".", location.href).href;
const lines = (pairs) => element("dl", {}, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));

function operation(path, verb, { summary, description: text, parameters = [], requestBody, responses, "x-curl": curl }) {
  const fields = Object.values(requestBody?.content ?? {}).flatMap(({ schema }) => Object.entries(schema.properties));
  const given = [
    ...parameters.map(({ name, description: meaning }) => [name, meaning]),
    ...fields.map(([name, schema]) => [name, schema.description]),
  ];
  return element("article", { className: "operation" },
    element("h3", {}, element("span", { className: "verb" }, verb.toUpperCase()), element("code", {}, path)),
    element("p", {}, `${summary}. ${text ?? ""}`),
    ...(given.length ? [lines(given)] : []),
    lines(Object.entries(responses).map(([code, response]) => [code, response.description])),
    ...(curl ? [element("pre", { tabIndex: 0 }, curl.replaceAll("ROOT/", root))] : []));
}

document.getElementById("operations").append(
  ...Object.entries(description.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, details]) => operation(path, verb, details))));
