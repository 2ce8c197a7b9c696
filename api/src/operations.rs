//! The operations of the document as a table: which template a path matches, what it allows, which query it takes.
//!
//! Invariant: a path finds the same operation here as in Poem's router (a literal segment goes before a parameter), so
//! that logs name the template and never the path: paths hold coupon codes. A literal hides a parameter only from the
//! methods that it has itself: `GET /v1/coupons/check` looks up the code `check` ([`PathItem::detour`]). Every query
//! parameter is checked against its declared schema before the handler runs, and one that is not declared is refused.

use std::collections::BTreeMap;

use coupon_core::error::FieldError;
use poem::{
    Request,
    http::{Method, Uri},
};
use serde_json::{Map, Value};

use crate::schema::Schema;

/// The methods that a path item of OpenAPI can have.
const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

/// Every path template with its methods.
#[derive(Debug, Default)]
pub struct Operations {
    paths: Vec<PathItem>,
}

/// One path template.
#[derive(Debug)]
pub struct PathItem {
    /// As the document spells it, such as `/v1/coupons/lock/{code}`.
    pub template: String,
    /// Its segments; `None` is a parameter.
    segments: Vec<Option<String>>,
    /// Which segments are ids.
    ids: Vec<usize>,
    methods: BTreeMap<String, Operation>,
}

/// One operation's parameters.
#[derive(Debug, Default)]
pub struct Operation {
    query: BTreeMap<String, Parameter>,
    /// Whether strangers may ask it, and how often is of interest; what tells of the process's health is never counted.
    open: bool,
    /// Name and place (`path`, `header`) of the others.
    others: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Parameter {
    schema: Schema,
    required: bool,
}

impl Operations {
    /// Reads the table from an OpenAPI document.
    pub fn read(document: &Value) -> Self {
        let none = Map::new();
        let components = document["components"]["schemas"].as_object().unwrap_or(&none);
        let item = |(template, item): (&String, &Value)| PathItem {
            template: template.clone(),
            segments: template
                .split('/')
                .map(|segment| (!segment.starts_with('{')).then(|| segment.to_owned()))
                .collect(),
            ids: ids(template, item),
            methods: METHODS
                .iter()
                .filter_map(|method| {
                    Some((
                        method.to_uppercase(),
                        Operation::read(item.get(method)?, components),
                    ))
                })
                .collect(),
        };
        let mut paths: Vec<_> = document["paths"]
            .as_object()
            .into_iter()
            .flatten()
            .map(item)
            .collect();
        // `{` sorts after every letter and digit, so literal segments are tried first.
        paths.sort_by(|a, b| a.template.split('/').cmp(b.template.split('/')));
        Self { paths }
    }

    /// The template that a path matches and that has the method; if none has it, the first that matches.
    pub fn find(&self, method: &Method, path: &str) -> Option<&PathItem> {
        let mut matching = self.matching(path);
        let first = matching.next()?;
        if first.operation(method).is_some() {
            return Some(first);
        }
        Some(
            matching
                .find(|item| item.operation(method).is_some())
                .unwrap_or(first),
        )
    }

    /// The value of `Allow` for a path.
    pub fn allow(&self, path: &str) -> String {
        let mut methods: Vec<&str> = self
            .matching(path)
            .flat_map(|item| item.methods.keys().map(String::as_str))
            .chain(["OPTIONS"])
            .collect();
        if methods.len() == 1 {
            return "GET, HEAD".to_owned(); // what is no operation is a page
        }
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.dedup();
        methods.join(", ")
    }

    /// Every template that a path matches, the most literal first.
    fn matching<'a, 'p>(&'a self, path: &'p str) -> impl Iterator<Item = &'a PathItem> + use<'a, 'p> {
        let mut first = true;
        let segments: Vec<&str> = path.split('/').collect();
        self.paths.iter().filter(move |item| {
            // An object that cannot exist is a matter of the most literal template alone.
            let matches = item.matches(&segments) && (first || item.has_well_formed_ids(path));
            first &= !matches;
            matches
        })
    }
}

/// The segments of a template whose parameter is declared as a UUID.
fn ids(template: &str, item: &Value) -> Vec<usize> {
    let operations = item
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, operation)| operation);
    let parameters: Vec<&Value> = operations
        .flat_map(|operation| operation["parameters"].as_array().into_iter().flatten())
        .filter(|parameter| parameter["in"] == "path" && parameter["schema"]["format"] == "uuid")
        .collect();
    let is_id = |segment: &str| {
        let name = segment
            .strip_prefix('{')
            .and_then(|segment| segment.strip_suffix('}'));
        name.is_some_and(|name| parameters.iter().any(|parameter| parameter["name"] == name))
    };
    let segments = template.split('/').enumerate();
    segments
        .filter(|(_, segment)| is_id(segment))
        .map(|(index, _)| index)
        .collect()
}

impl PathItem {
    fn matches(&self, segments: &[&str]) -> bool {
        self.segments.len() == segments.len()
            && self
                .segments
                .iter()
                .zip(segments)
                .all(|(wanted, segment)| wanted.as_deref().is_none_or(|wanted| wanted == *segment))
    }

    /// The same target with every parameter spelled so that no literal of another template can match it (its first
    /// letter percent-encoded, which RFC 3986 calls equivalent); `None` when no parameter is all small letters and
    /// dashes, as literals are.
    pub fn detour(&self, uri: &Uri) -> Option<Uri> {
        let like_a_literal = |segment: &str| {
            !segment.is_empty()
                && segment
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        };
        let mut changed = false;
        let segments = uri.path().split('/').zip(self.template.split('/'));
        let path: Vec<String> = segments
            .map(|(segment, wanted)| {
                if !wanted.starts_with('{') || !like_a_literal(segment) {
                    return segment.to_owned();
                }
                changed = true;
                format!("%{:02X}{}", segment.as_bytes()[0], &segment[1..])
            })
            .collect();
        if !changed {
            return None;
        }
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        Uri::try_from(path.join("/") + &query).ok()
    }

    /// Whether the ids in a path of this template are spelled as RFC 9562 does; the library would also read braces, URNs
    /// and no dashes, and one object has one path.
    pub fn has_well_formed_ids(&self, path: &str) -> bool {
        let segments: Vec<&str> = path.split('/').collect();
        self.ids.iter().all(|index| {
            let segment = segments.get(*index).copied().unwrap_or_default();
            segment.len() == 36 && uuid::Uuid::try_parse(segment).is_ok()
        })
    }

    /// The operation of a method; HEAD is answered by GET.
    pub fn operation(&self, method: &Method) -> Option<&Operation> {
        let get = (method == Method::HEAD).then_some("GET");
        self.methods
            .get(method.as_str())
            .or_else(|| self.methods.get(get?))
    }
}

impl Operation {
    fn read(operation: &Value, components: &Map<String, Value>) -> Self {
        let is_health = operation["tags"]
            .as_array()
            .is_some_and(|tags| tags.iter().any(|tag| tag == "Health"));
        let guarded = operation["security"]
            .as_array()
            .is_some_and(|ways| !ways.is_empty());
        let mut read = Self {
            open: !guarded && !is_health,
            ..Self::default()
        };
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            match parameter["in"].as_str() {
                Some("query") => {
                    let schema = Schema::compile(&parameter["schema"], components);
                    let required = parameter["required"].as_bool().unwrap_or_default();
                    read.query.insert(name, Parameter { schema, required });
                }
                place => drop(read.others.insert(name, place.unwrap_or_default().to_owned())),
            }
        }
        read
    }

    /// Whether strangers may ask it.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Where a parameter is (`path`, `header`, …) that is not in the query.
    pub fn place(&self, name: &str) -> Option<&str> {
        self.others.get(name).map(String::as_str)
    }

    /// Every fault of the query, at `?name`.
    pub fn check_query(&self, request: &Request) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut fault = |name: &str, code, detail: String| {
            faults.push(FieldError {
                pointer: format!("?{name}"),
                code,
                detail,
            });
        };
        let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let pairs: Vec<(String, String)> = request.params().unwrap_or_default();
        for (name, value) in pairs {
            sent.entry(name).or_default().push(value);
        }
        for (name, parameter) in &self.query {
            if parameter.required && !sent.contains_key(name) {
                fault(name, "required", "This is required.".to_owned());
            }
        }
        for (name, values) in &sent {
            let Some(Parameter { schema, .. }) = self.query.get(name) else {
                fault(
                    name,
                    "unknown_parameter",
                    "There is no such parameter.".to_owned(),
                );
                continue;
            };
            let list = schema.ty() == "array";
            if values.len() > 1 && !list {
                fault(name, "duplicate", "This may be given once.".to_owned());
            }
            let mut value = match schema.items() {
                Some(item) if list => values.iter().map(|value| typed(&item, value)).collect(),
                _ => typed(schema, &values[0]),
            };
            for found in schema.check(&mut value) {
                fault(name, found.code, found.detail);
            }
        }
        faults
    }
}

/// A query value as the JSON it stands for; what cannot be read stays a string, which is then the wrong type.
fn typed(schema: &Schema, text: &str) -> Value {
    let read = match schema.ty() {
        // Only JSON's own spelling: `+5`, `05` and `1e2` are no integers here.
        "integer" | "number" if text.trim() == text => {
            serde_json::from_str(text).ok().filter(Value::is_number)
        }
        "boolean" => text.parse().ok().map(Value::Bool),
        _ => None,
    };
    read.unwrap_or_else(|| Value::from(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literal_segments_go_before_parameters_and_templates_are_whole() {
        let table = Operations::read(&json!({ "paths": {
            "/v1/coupons/{code}": { "get": {} }, "/v1/coupons/check": { "post": {} },
            "/v1/{kind}/mine": { "get": {} }, "/v1/coupons/{code}/events": { "get": {} },
        } }));
        let find = |path: &str| table.find(&Method::POST, path).map(|item| item.template.as_str());
        assert_eq!(find("/v1/coupons/check"), Some("/v1/coupons/check"));
        assert_eq!(find("/v1/coupons/ABC"), Some("/v1/coupons/{code}"));
        assert_eq!(find("/v1/coupons/mine"), Some("/v1/coupons/{code}"));
        assert_eq!(find("/v1/books/mine"), Some("/v1/{kind}/mine"));
        assert_eq!(find("/v1/coupons/ABC/events"), Some("/v1/coupons/{code}/events"));
        assert_eq!(find("/v1/coupons"), None);
        assert_eq!(find("/v1/coupons/ABC/events/x"), None);
        assert_eq!(table.allow("/v1/coupons/check"), "GET, HEAD, OPTIONS, POST");
        assert_eq!(table.allow("/v1/coupons/x"), "GET, HEAD, OPTIONS");
    }

    #[test]
    fn a_literal_hides_a_parameter_only_from_its_own_methods() {
        let table = Operations::read(&json!({ "paths": {
            "/v1/coupons/{code}": { "get": {} }, "/v1/coupons/check": { "post": {} },
            "/v1/coupons/{code}/events": { "get": {} }, "/v1/coupons/assign/{code}": { "post": {} },
            "/v1/jobs/bulk": { "post": {} },
            "/v1/jobs/{id}": { "get": { "parameters": [
                { "name": "id", "in": "path", "schema": { "type": "string", "format": "uuid" } }
            ] } },
        } }));
        let find = |method: Method, target: &'static str| {
            let uri = Uri::from_static(target);
            let item = table.find(&method, uri.path()).expect("a template");
            let detour = item.detour(&uri).map(|uri| uri.to_string());
            (item.template.as_str(), detour)
        };
        let coupon = "/v1/coupons/{code}";
        assert_eq!(
            find(Method::POST, "/v1/coupons/check"),
            ("/v1/coupons/check", None)
        );
        let detour = Some("/v1/coupons/%63heck?book_id=x".to_owned());
        assert_eq!(
            find(Method::HEAD, "/v1/coupons/check?book_id=x"),
            (coupon, detour)
        );
        assert_eq!(find(Method::GET, "/v1/coupons/CHECK"), (coupon, None));
        let detour = Some("/v1/coupons/%61ssign/events".to_owned());
        assert_eq!(
            find(Method::GET, "/v1/coupons/assign/events"),
            ("/v1/coupons/{code}/events", detour)
        );
        let detour = Some("/v1/coupons/assign/%65vents".to_owned());
        assert_eq!(
            find(Method::POST, "/v1/coupons/assign/events"),
            ("/v1/coupons/assign/{code}", detour)
        );
        // No id is spelled like that.
        assert_eq!(find(Method::GET, "/v1/jobs/bulk").0, "/v1/jobs/bulk");
        assert_eq!(table.allow("/v1/jobs/bulk"), "OPTIONS, POST");
    }
}
