//! The OpenAPI document as tests walk it: its operations, its schemas, and a body that each of them takes.

use reqwest::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::Service;

/// The document of a service.
pub struct Document(pub Value);

/// One operation of it.
#[derive(Clone)]
pub struct Operation {
    /// The method, in capitals.
    pub method: Method,
    /// The path with its `{parameters}`.
    pub path: String,
    /// What the document says of it.
    pub value: Value,
}

impl Document {
    /// As the service has it.
    pub fn of(service: &Service) -> Self {
        Self(serde_json::from_str(&coupon_api::openapi(&service.app)).expect("JSON"))
    }

    /// Every operation.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (path, item) in self.0["paths"].as_object().expect("paths") {
            for (method, value) in item.as_object().expect("a path item") {
                operations.push(Operation {
                    method: method.to_uppercase().parse().expect("a method"),
                    path: path.clone(),
                    value: value.clone(),
                });
            }
        }
        operations
    }

    /// A schema with its references followed and its parts folded into one.
    pub fn flat(&self, schema: &Value) -> Map<String, Value> {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().expect("a name");
            return self.flat(&self.0["components"]["schemas"][name]);
        }
        let mut flat = schema.as_object().cloned().unwrap_or_default();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            for (key, value) in self.flat(part) {
                match (flat.get_mut(&key), value) {
                    (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                    (Some(Value::Array(old)), Value::Array(new)) => old.extend(new),
                    (_, value) => drop(flat.insert(key, value)),
                }
            }
        }
        flat
    }

    /// A value that the schema takes, with nothing in it that may be left out.
    pub fn sample(&self, schema: &Value) -> Value {
        let schema = self.flat(schema);
        let text = |name: &str| schema.get(name).and_then(Value::as_str).unwrap_or_default();
        if let Some(first) = schema.get("enum").and_then(|allowed| allowed.get(0)) {
            return first.clone();
        }
        match (text("type"), text("format")) {
            ("object", _) => schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|name| (name.to_owned(), self.sample(&schema["properties"][name])))
                .collect::<Map<_, _>>()
                .into(),
            ("array", _) => json!([self.sample(&schema["items"])]),
            ("string", "uuid") => json!("01890000-0000-7000-8000-000000000000"),
            ("string", "date-time") => json!("2030-01-02T03:04:05Z"),
            ("string", _) => json!("sample"),
            ("integer" | "number", _) => schema
                .get("minimum")
                .map_or(json!(1), |low| json!(low.as_f64().expect("a number") as i64)),
            ("boolean", _) => json!(true),
            (other, _) => panic!("no sample of type {other:?}"),
        }
    }
}

impl Operation {
    /// `POST /v1/books`.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The path with its parameters filled with ids that nothing has, or a code that nothing has.
    pub fn absent_path(&self) -> String {
        self.path
            .replace("{id}", "01890000-0000-7000-8000-000000000000")
            .replace("{code}", "NO-SUCH-CODE")
    }

    /// The path with the ids of objects that exist.
    pub fn present_path(
        &self,
        book_id: Uuid,
        job_id: &str,
        user_id: Uuid,
        key_id: &str,
        code: &str,
    ) -> String {
        let id = match self.path.split('/').nth(2) {
            Some("books") => book_id.to_string(),
            Some("jobs" | "exports") => job_id.to_owned(),
            Some("users") => user_id.to_string(),
            Some("api-keys") => key_id.to_owned(),
            Some("redemptions" | "pools" | "distributions" | "schedules") => Uuid::nil().to_string(), // none
            _ => String::new(),
        };
        assert!(
            !self.path.contains("{id}") || !id.is_empty(),
            "no object for {}",
            self.path
        );
        self.path.replace("{id}", &id).replace("{code}", code)
    }

    /// The schema of its JSON body, if it takes one.
    pub fn json_body(&self) -> Option<&Value> {
        self.value
            .pointer("/requestBody/content/application~1json/schema")
    }

    /// Its parameters in `place` (`query`, `path`, `header`).
    pub fn parameters(&self, place: &str) -> impl Iterator<Item = &Value> {
        self.value["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(move |parameter| parameter["in"] == place)
    }

    /// The query with what must be in it, or nothing.
    pub fn required_query(&self, document: &Document) -> Vec<(String, String)> {
        self.parameters("query")
            .filter(|parameter| parameter["required"] == true)
            .map(|parameter| {
                let value = document.sample(&parameter["schema"]);
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (parameter["name"].as_str().expect("a name").to_owned(), text)
            })
            .collect()
    }
}

impl Document {
    /// Asserts that an answer has exactly the members that its schema declares, nothing missing, and that everything
    /// that looks like a time is one in UTC with `Z`.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn check(&self, schema: &str, answer: Value) -> Value {
        let schema = self.flat(&json!({ "$ref": schema }));
        let declared = schema["properties"].as_object().expect("an object");
        let members = answer.as_object().expect("an object");
        for name in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            assert!(members.contains_key(name), "{name} is missing: {answer}");
        }
        for name in members.keys() {
            assert!(declared.contains_key(name), "{name} is not declared: {answer}");
        }
        check_times("", &answer);
        answer
    }
}

#[track_caller]
fn check_times(name: &str, value: &Value) {
    match value {
        Value::Object(members) => members
            .iter()
            .for_each(|(name, member)| check_times(name, member)),
        Value::Array(items) => items.iter().for_each(|item| check_times(name, item)),
        Value::String(text) => {
            let named =
                name == "at" || name.ends_with("_at") || name.ends_with("_until") || name.ends_with("_time");
            let is_time = chrono::DateTime::parse_from_rfc3339(text).is_ok();
            assert!(!named || is_time, "{name} is no time: {text}");
            assert!(!is_time || text.ends_with('Z'), "{name} is not in UTC: {text}");
        }
        _ => {}
    }
}
