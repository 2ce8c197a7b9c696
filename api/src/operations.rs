//! The operations of the document as a table: which template a path matches, what it allows, which query it takes.
//!
//! Invariant: a path finds the same operation here as in Poem's router (a literal segment goes before a parameter), so
//! that logs name the template and never the path: paths hold coupon codes. Every query parameter is checked against
//! its declared schema before the handler runs, and one that is not declared is refused.

use std::collections::BTreeMap;

use coupon_core::error::FieldError;
use poem::{Request, http::Method};
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
    /// Which segments are ids.
    ids: Vec<usize>,
    methods: BTreeMap<String, Operation>,
}

/// One operation's parameters.
#[derive(Debug, Default)]
pub struct Operation {
    query: BTreeMap<String, Parameter>,
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

    /// The template that a path matches.
    pub fn find(&self, path: &str) -> Option<&PathItem> {
        self.paths.iter().find(|item| {
            let mut segments = path.split('/');
            let mut wanted = item.template.split('/');
            loop {
                match (wanted.next(), segments.next()) {
                    (None, None) => return true,
                    (Some(wanted), Some(_)) if wanted.starts_with('{') => {}
                    (Some(wanted), Some(segment)) if wanted == segment => {}
                    _ => return false,
                }
            }
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

    /// The value of `Allow`.
    pub fn allow(&self) -> String {
        let mut methods: Vec<&str> = self
            .methods
            .keys()
            .map(String::as_str)
            .chain(["OPTIONS"])
            .collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.dedup();
        methods.join(", ")
    }
}

impl Operation {
    fn read(operation: &Value, components: &Map<String, Value>) -> Self {
        let mut read = Self::default();
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
        let find = |path: &str| table.find(path).map(|item| item.template.as_str());
        assert_eq!(find("/v1/coupons/check"), Some("/v1/coupons/check"));
        assert_eq!(find("/v1/coupons/ABC"), Some("/v1/coupons/{code}"));
        assert_eq!(find("/v1/coupons/mine"), Some("/v1/coupons/{code}"));
        assert_eq!(find("/v1/books/mine"), Some("/v1/{kind}/mine"));
        assert_eq!(find("/v1/coupons/ABC/events"), Some("/v1/coupons/{code}/events"));
        assert_eq!(find("/v1/coupons"), None);
        assert_eq!(find("/v1/coupons/ABC/events/x"), None);
        assert_eq!(table.find("/v1/coupons/check").unwrap().allow(), "OPTIONS, POST");
        assert_eq!(table.find("/v1/coupons/x").unwrap().allow(), "GET, HEAD, OPTIONS");
    }
}
