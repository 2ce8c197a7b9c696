// Renders /openapi.json: operations by tag, each with its parameters, body, answers and an anchor.
// Text goes in as text, never as markup, and no style is set from here: the page's policy allows neither.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
const DEPTH = 4; // levels of nested objects that are unfolded

/** An element with properties and children. */
function el(name, props, ...children) {
  const element = Object.assign(document.createElement(name), props);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

let schemas = {};

function nameOf(schema) {
  return schema.$ref ? schema.$ref.split("/").pop() : null;
}

/** Follows $ref and folds allOf into one schema. */
function resolve(schema) {
  if (schema.$ref) return resolve(schemas[nameOf(schema)] ?? {});
  if (!schema.allOf) return schema;
  const whole = { ...schema, properties: { ...schema.properties }, required: [...(schema.required ?? [])] };
  delete whole.allOf;
  for (const part of schema.allOf.map(resolve)) {
    Object.assign(whole.properties, part.properties);
    whole.required.push(...(part.required ?? []));
    for (const key of ["type", "format", "enum", "items", "description", "oneOf"]) whole[key] ??= part[key];
  }
  return whole;
}

function typeOf(schema) {
  const named = nameOf(schema) ?? (schema.allOf?.length ? nameOf(schema.allOf[0]) : null);
  const whole = resolve(schema);
  const nullable = schema.nullable ? " or null" : "";
  if (whole.type === "array") return `array of ${typeOf(whole.items ?? {})}${nullable}`;
  const plain = whole.format ?? whole.type ?? "any";
  return (named && whole.type === "object" ? named : plain) + nullable;
}

/** What a value must keep to, in words. */
function rules(schema) {
  const s = resolve(schema);
  const said = [];
  if (s.enum && s.enum.length <= 24) said.push(`one of ${s.enum.join(", ")}`);
  if (s.minimum !== undefined) said.push(`at least ${s.minimum}`);
  if (s.maximum !== undefined) said.push(`at most ${s.maximum}`);
  if (s.minLength) said.push(`${s.minLength} characters or more`);
  if (s.maxLength !== undefined) said.push(`up to ${s.maxLength} characters`);
  if (s.minItems) said.push(`${s.minItems} items or more`);
  if (s.maxItems !== undefined) said.push(`up to ${s.maxItems} items`);
  if (s.default !== undefined && s.default !== null) said.push(`default ${JSON.stringify(s.default)}`);
  return said.join("; ");
}

/** One row per property, nested objects by their dotted path. */
function rows(schema, prefix = "", depth = 0, seen = []) {
  const whole = resolve(schema);
  if (whole.type === "array" && depth < DEPTH) return rows(whole.items ?? {}, prefix ? `${prefix}[]` : "[]", depth, seen);
  const variants = whole.oneOf ?? whole.anyOf ?? [];
  const found = variants.flatMap((variant) => rows(variant, prefix, depth + 1, seen));
  for (const [name, property] of Object.entries(whole.properties ?? {})) {
    const path = prefix ? `${prefix}.${name}` : name;
    const inner = resolve(property);
    const description = property.description ?? inner.description ?? "";
    found.push({ path, type: typeOf(property), required: whole.required?.includes(name), rules: rules(property), description });
    const key = nameOf(property) ?? nameOf(inner.items ?? {}) ?? path;
    if (depth < DEPTH && !seen.includes(key)) found.push(...rows(property, path, depth + 1, [...seen, key]));
  }
  return found;
}

function table(caption, heads, lines) {
  const head = el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text))));
  const body = lines.map(([first, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, el("code", {}, first)), rest.map((cell) => el("td", {}, cell))));
  const element = el("table", {}, head, el("tbody", {}, body));
  element.setAttribute("aria-label", caption);
  return el("div", { className: "scroll", tabIndex: 0 }, element);
}

function said(row) {
  return [row.required ? "required" : null, row.rules, row.description].filter(Boolean).join(". ");
}

function fields(caption, schema) {
  const found = rows(schema);
  if (!found.length) return el("p", { className: "faint" }, typeOf(schema));
  return table(caption, ["field", "type", ""], found.map((row) => [row.path, row.type, said(row)]));
}

function bodyOf(request) {
  return Object.entries(request?.content ?? {}).flatMap(([type, media]) => [
    el("h4", {}, "Body ", el("span", { className: "faint" }, `${type}${request.required ? "" : ", may be left out"}`)),
    fields("Body fields", media.schema ?? {}),
  ]);
}

function answers(responses) {
  const all = Object.entries(responses ?? {});
  const good = all.filter(([status]) => status < "4");
  const bad = all.filter(([status]) => status >= "4");
  const shown = good.flatMap(([status, response]) => {
    const media = Object.entries(response.content ?? {})[0];
    const about = [response.description, media?.[0]].filter(Boolean).join(" · ");
    return [
      el("h4", {}, `Answer ${status} `, el("span", { className: "faint" }, about)),
      media ? fields(`Fields of answer ${status}`, media[1].schema ?? {}) : null,
    ];
  });
  const refusals = bad.map(([status, response]) => [status, response.description ?? ""]);
  const folded = el("details", {}, el("summary", {}, "Refusals"), table("Refusals", ["status", ""], refusals));
  return refusals.length ? [...shown, folded] : shown;
}

function operation({ path, method, op, id }) {
  const parameters = (op.parameters ?? []).map((p) => {
    const row = { required: p.required, rules: rules(p.schema ?? {}), description: p.description ?? p.schema?.description };
    return [p.name, p.in, typeOf(p.schema ?? {}), said(row)];
  });
  const who = (op.security ?? []).flatMap((scheme) => Object.keys(scheme));
  return el("article", { id },
    el("h3", {}, el("span", { className: `method ${method}` }, method.toUpperCase()),
      el("a", { href: `#${id}` }, el("code", {}, path))),
    op.summary ? el("p", { className: "text" }, op.summary) : null,
    op.description && op.description !== op.summary ? el("p", { className: "text" }, op.description) : null,
    op.deprecated ? el("p", {}, "Deprecated.") : null,
    who.length ? el("p", { className: "faint" }, `Needs ${who.join(" or ")}.`) : null,
    parameters.length ? [el("h4", {}, "Parameters"), table("Parameters", ["name", "in", "type", ""], parameters)] : null,
    bodyOf(op.requestBody), answers(op.responses));
}

function collect(document_) {
  const groups = new Map((document_.tags ?? []).map((tag) => [tag.name, []]));
  for (const [path, item] of Object.entries(document_.paths ?? {})) {
    for (const method of METHODS.filter((name) => item[name])) {
      const op = item[method];
      const id = op.operationId ?? `${method}${path}`.replace(/[^A-Za-z0-9]+/g, "-").replace(/-$/, "");
      const tag = op.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ path, method, op, id });
    }
  }
  return [...groups].filter(([, found]) => found.length);
}

function render(document_) {
  schemas = document_.components?.schemas ?? {};
  document.getElementById("title").textContent = `${document_.info.title} ${document_.info.version}`;
  document.getElementById("about").textContent = document_.info.description ?? "";
  const main = document.getElementById("operations");
  const contents = document.getElementById("contents");
  const entries = [];
  for (const [tag, found] of collect(document_)) {
    const list = el("ul", {});
    const section = el("section", {}, el("h2", {}, tag));
    const heading = el("h2", {}, tag);
    for (const one of found) {
      const article = operation(one);
      const link = el("li", {}, el("a", { href: `#${one.id}` },
        el("span", { className: `method ${one.method}` }, one.method.toUpperCase()), one.path));
      section.append(article);
      list.append(link);
      const words = `${one.method} ${one.path} ${one.op.summary ?? ""} ${one.op.description ?? ""}`.toLowerCase();
      entries.push({ article, link, section, heading, words });
    }
    main.append(section);
    contents.append(heading, list);
  }
  filterBy(entries);
  main.removeAttribute("aria-busy");
  document.getElementById("state").hidden = true;
  // The anchor in the address did not exist while the browser looked for it.
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

function filterBy(entries) {
  const state = document.getElementById("state");
  document.getElementById("filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    const shown = new Set();
    for (const entry of entries) {
      const hidden = !words.every((word) => entry.words.includes(word));
      entry.article.hidden = entry.link.hidden = hidden;
      if (!hidden) shown.add(entry.section);
    }
    for (const { section, heading } of entries) section.hidden = heading.hidden = !shown.has(section);
    state.hidden = shown.size > 0;
    state.textContent = "Nothing fits.";
  });
}

fetch("/openapi.json")
  .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`status ${response.status}`))))
  .then(render)
  .catch((error) => {
    document.getElementById("operations").removeAttribute("aria-busy");
    document.getElementById("state").textContent = `The document could not be shown: ${error.message}`;
  });
