//! Checks JSON against an OpenAPI schema and names every fault at once, by JSON pointer (RFC 6901).
//!
//! Invariant: what passes has exactly the declared types (a number is no string, 1.5 is no integer) and no member that
//! was not declared; a `null` member of a declared property has been taken out, since null means absent. Members of
//! free-form objects (`additionalProperties`) keep their nulls. `pattern` is left to the types themselves.
//! The same code checks bodies and query parameters.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use coupon_core::error::FieldError;
use serde_json::{Map, Value};

/// More faults than this help nobody; a body of 1 MiB could hold hundreds of thousands.
const MAX_FAULTS: usize = 100;

/// A schema, compiled once and shared.
#[derive(Debug, Clone)]
pub struct Schema {
    nodes: Arc<[Node]>,
    root: usize,
}

#[derive(Debug, Default)]
struct Node {
    ty: String,
    format: String,
    properties: BTreeMap<String, usize>,
    required: Vec<String>,
    /// What an undeclared member must be; `None` refuses it.
    additional: Option<usize>,
    items: Option<usize>,
    variants: Vec<usize>,
    /// Property and its value → variant, where a union names one.
    discriminator: Option<(String, HashMap<String, usize>)>,
    allowed: Vec<Value>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    length: (Option<u64>, Option<u64>),
    count: (Option<u64>, Option<u64>),
    unique: bool,
    members: (Option<u64>, Option<u64>),
}

impl Schema {
    /// Compiles `schema`; `components` holds what its `$ref`s name.
    ///
    /// # Panics
    /// If a `$ref` names nothing, which is a mistake in this program, found when it starts.
    pub fn compile(schema: &Value, components: &Map<String, Value>) -> Self {
        let mut compiler = Compiler {
            components,
            nodes: Vec::new(),
            named: HashMap::new(),
        };
        let root = compiler.node(schema);
        Self {
            nodes: compiler.nodes.into(),
            root,
        }
    }

    /// Checks `value`, takes out nulls that mean absent, and returns every fault (at most a hundred).
    pub fn check(&self, value: &mut Value) -> Vec<FieldError> {
        let mut check = Check {
            nodes: &self.nodes,
            faults: Vec::new(),
            path: String::new(),
        };
        check.characters(value);
        check.value(self.root, value);
        check.faults
    }

    /// Whether `{}` lacks something.
    pub fn has_required(&self) -> bool {
        !self.nodes[self.root].required.is_empty()
    }

    /// `array`, `integer`, … or nothing for anything.
    pub fn ty(&self) -> &str {
        &self.nodes[self.root].ty
    }

    /// The schema of an array's items.
    pub fn items(&self) -> Option<Self> {
        let root = self.nodes[self.root].items?;
        Some(Self {
            nodes: self.nodes.clone(),
            root,
        })
    }
}

struct Compiler<'a> {
    components: &'a Map<String, Value>,
    nodes: Vec<Node>,
    /// `$ref` → node, also while it is being compiled: schemas may contain themselves.
    named: HashMap<String, usize>,
}

impl Compiler<'_> {
    fn node(&mut self, schema: &Value) -> usize {
        let name = schema["$ref"].as_str();
        if let Some(&known) = name.and_then(|name| self.named.get(name)) {
            return known;
        }
        let index = self.nodes.len();
        self.nodes.push(Node::default());
        if let Some(name) = name {
            self.named.insert(name.to_owned(), index);
        }
        self.nodes[index] = self.build(&Value::Object(self.flatten(schema)));
        index
    }

    fn component(&self, reference: &str) -> &Value {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        self.components
            .get(name)
            .unwrap_or_else(|| panic!("no schema is called {name}"))
    }

    /// Follows `$ref` and folds `allOf` into one schema: an undeclared member is only undeclared if no part has it.
    fn flatten(&self, schema: &Value) -> Map<String, Value> {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.flatten(self.component(reference));
        }
        let mut flat = Map::new();
        let parts = schema["allOf"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| self.flatten(part));
        let own = schema.as_object().cloned().unwrap_or_default();
        for part in parts.chain([own]) {
            for (key, value) in part {
                match (flat.get_mut(&key), value) {
                    (_, _) if key == "allOf" => {}
                    (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                    (Some(Value::Array(old)), Value::Array(new)) if key == "required" => old.extend(new),
                    (_, value) => drop(flat.insert(key, value)),
                }
            }
        }
        flat
    }

    fn build(&mut self, schema: &Value) -> Node {
        let limit = |name: &str, exclusive: &str| {
            Some((
                schema[name].as_f64()?,
                schema[exclusive].as_bool().unwrap_or_default(),
            ))
        };
        let range = |low: &str, high: &str| (schema[low].as_u64(), schema[high].as_u64());
        let text = |name: &str| schema[name].as_str().unwrap_or_default().to_owned();
        let variants = schema["oneOf"]
            .as_array()
            .or(schema["anyOf"].as_array())
            .cloned()
            .unwrap_or_default();
        Node {
            ty: text("type"),
            format: text("format"),
            required: strings(&schema["required"]),
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            minimum: limit("minimum", "exclusiveMinimum"),
            maximum: limit("maximum", "exclusiveMaximum"),
            length: range("minLength", "maxLength"),
            count: range("minItems", "maxItems"),
            members: range("minProperties", "maxProperties"),
            unique: schema["uniqueItems"].as_bool().unwrap_or_default(),
            properties: entries(&schema["properties"])
                .map(|(key, value)| (key.clone(), self.node(value)))
                .collect(),
            additional: match &schema["additionalProperties"] {
                Value::Null | Value::Bool(false) => None,
                additional => Some(self.node(additional)),
            },
            items: schema.get("items").map(|items| self.node(items)),
            discriminator: schema["discriminator"]["propertyName"].as_str().map(|property| {
                let mapping = entries(&schema["discriminator"]["mapping"]);
                let by_name = mapping
                    .map(|(value, target)| (value.clone(), self.node(&serde_json::json!({ "$ref": target }))))
                    .collect();
                (property.to_owned(), by_name)
            }),
            variants: variants.iter().map(|variant| self.node(variant)).collect(),
        }
    }
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

struct Check<'a> {
    nodes: &'a [Node],
    faults: Vec<FieldError>,
    path: String,
}

impl Check<'_> {
    fn fault(&mut self, code: &'static str, detail: impl Into<String>) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(FieldError {
                pointer: self.path.clone(),
                code,
                detail: detail.into(),
            });
        }
    }

    fn within(&mut self, member: &str, then: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        self.path.push('/');
        self.path.push_str(&member.replace('~', "~0").replace('/', "~1"));
        then(self);
        self.path.truncate(before);
    }

    /// PostgreSQL's text cannot hold U+0000, wherever it stands.
    fn characters(&mut self, value: &Value) {
        const DETAIL: &str = "The character U+0000 cannot be stored.";
        match value {
            Value::String(text) if text.contains('\0') => self.fault("bad_character", DETAIL),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.within(&index.to_string(), |check| check.characters(item));
                }
            }
            Value::Object(members) => {
                for (key, member) in members {
                    self.within(key, |check| {
                        if key.contains('\0') {
                            check.fault("bad_character", DETAIL);
                        }
                        check.characters(member);
                    });
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, index: usize, value: &mut Value) {
        let node = &self.nodes[index];
        if !node.variants.is_empty() {
            return self.variant(node, value);
        }
        match (node.ty.as_str(), &mut *value) {
            ("object", Value::Object(members)) => self.object(node, members),
            ("array", Value::Array(items)) => self.array(node, items),
            ("string", Value::String(text)) => self.string(node, text),
            ("integer", Value::Number(number)) => self.integer(node, number),
            ("number", Value::Number(number)) => self.range(node, number.as_f64().unwrap_or(f64::NAN)),
            ("boolean", Value::Bool(_)) | ("", _) => {}
            (wanted, _) => return self.fault("wrong_type", format!("This must be of type {wanted}.")),
        }
        if !node.allowed.is_empty() && !node.allowed.contains(value) {
            let allowed: Vec<_> = node.allowed.iter().map(Value::to_string).collect();
            self.fault(
                "not_in_enum",
                format!("This must be one of {}.", allowed.join(", ")),
            );
        }
    }

    fn object(&mut self, node: &Node, members: &mut Map<String, Value>) {
        members.retain(|key, member| !(member.is_null() && node.properties.contains_key(key)));
        for name in &node.required {
            if !members.contains_key(name) {
                self.within(name, |check| check.fault("required", "This is required."));
            }
        }
        self.size("too_few", "too_many", "members", node.members, members.len());
        for (key, member) in members {
            self.within(key, |check| {
                match node.properties.get(key).copied().or(node.additional) {
                    Some(schema) => check.value(schema, member),
                    None => check.fault("unknown_field", "There is no such field."),
                }
            });
        }
    }

    fn array(&mut self, node: &Node, items: &mut [Value]) {
        self.size("too_few", "too_many", "items", node.count, items.len());
        for (position, item) in items.iter_mut().enumerate() {
            if let Some(schema) = node.items {
                self.within(&position.to_string(), |check| check.value(schema, item));
            }
        }
        if node.unique {
            let mut seen = std::collections::HashSet::new();
            for (position, item) in items.iter().enumerate() {
                if !seen.insert(item.to_string()) {
                    self.within(&position.to_string(), |check| {
                        check.fault("duplicate", "This is here twice.")
                    });
                }
            }
        }
    }

    fn string(&mut self, node: &Node, text: &str) {
        self.size(
            "too_short",
            "too_long",
            "characters",
            node.length,
            text.chars().count(),
        );
        let fits = match node.format.as_str() {
            // Only the spelling of RFC 9562: `uuid` itself also reads braces and URNs.
            "uuid" => text.len() == 36 && uuid::Uuid::try_parse(text).is_ok(),
            "date-time" => chrono::DateTime::parse_from_rfc3339(text).is_ok(),
            "email" => is_email(text),
            _ => true,
        };
        if !fits {
            self.fault("bad_format", format!("This must be a {}.", node.format));
        }
    }

    fn integer(&mut self, node: &Node, number: &serde_json::Number) {
        let whole = number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from));
        let Some(whole) = whole else {
            // Beyond 64 bits a whole number is read as a float; it is too large, not of the wrong type.
            let huge = number
                .as_f64()
                .is_some_and(|float| float.fract() == 0.0 && float.abs() >= 9.0e18);
            return match huge {
                true => self.fault("out_of_range", "This number is too large."),
                false => self.fault(
                    "wrong_type",
                    "This must be a whole number, written without a fraction.",
                ),
            };
        };
        let (low, high) = match node.format.as_str() {
            "int8" => (i8::MIN.into(), i8::MAX.into()),
            "int16" => (i16::MIN.into(), i16::MAX.into()),
            "int32" => (i32::MIN.into(), i32::MAX.into()),
            "uint8" => (0, u8::MAX.into()),
            "uint16" => (0, u16::MAX.into()),
            "uint32" => (0, u32::MAX.into()),
            "uint64" => (0, u64::MAX.into()),
            _ => (i64::MIN.into(), i64::MAX.into()),
        };
        if whole < low || whole > high {
            // A declared minimum or maximum says more than the width of a register.
            let before = self.faults.len();
            self.range(node, whole as f64);
            if self.faults.len() == before {
                self.fault("out_of_range", format!("This must be between {low} and {high}."));
            }
        } else {
            self.range(node, whole as f64);
        }
    }

    fn range(&mut self, node: &Node, number: f64) {
        if let Some((low, exclusive)) = node.minimum
            && (number < low || exclusive && number == low)
        {
            self.fault(
                "out_of_range",
                format!(
                    "This must be {} {low}.",
                    if exclusive { "more than" } else { "at least" }
                ),
            );
        }
        if let Some((high, exclusive)) = node.maximum
            && (number > high || exclusive && number == high)
        {
            self.fault(
                "out_of_range",
                format!(
                    "This must be {} {high}.",
                    if exclusive { "less than" } else { "at most" }
                ),
            );
        }
    }

    fn size(
        &mut self,
        few: &'static str,
        many: &'static str,
        what: &str,
        (low, high): (Option<u64>, Option<u64>),
        size: usize,
    ) {
        let size = size as u64;
        if let Some(low) = low.filter(|low| size < *low) {
            self.fault(few, format!("This needs at least {low} {what}."));
        }
        if let Some(high) = high.filter(|high| size > *high) {
            self.fault(many, format!("This takes at most {high} {what}."));
        }
    }

    /// The variant that the discriminator names, else the first that fits, else the faults of the one nearest to it.
    fn variant(&mut self, node: &Node, value: &mut Value) {
        if let Some((property, by_name)) = &node.discriminator {
            let named = value.get(property).and_then(Value::as_str);
            return match named.and_then(|name| by_name.get(name)) {
                Some(&variant) => self.value(variant, value),
                None => {
                    let mut names: Vec<_> = by_name.keys().map(String::as_str).collect();
                    names.sort_unstable();
                    let detail = format!("This must be one of {}.", names.join(", "));
                    let code = if named.is_some() {
                        "not_in_enum"
                    } else {
                        "required"
                    };
                    self.within(property, |check| check.fault(code, detail));
                }
            };
        }
        let mut nearest: Option<(Vec<FieldError>, Value)> = None;
        for &variant in &node.variants {
            let mut attempt = Check {
                nodes: self.nodes,
                faults: Vec::new(),
                path: self.path.clone(),
            };
            let mut copy = value.clone();
            attempt.value(variant, &mut copy);
            if nearest
                .as_ref()
                .is_none_or(|(faults, _)| attempt.faults.len() < faults.len())
            {
                nearest = Some((attempt.faults, copy));
            }
        }
        if let Some((faults, checked)) = nearest {
            *value = checked;
            self.faults.extend(faults);
        }
    }
}

/// Roughly RFC 5321: one `@` with something on both sides, no spaces or control characters, at most 254 octets.
fn is_email(text: &str) -> bool {
    let parts = text.rsplit_once('@');
    text.len() <= 254
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && parts.is_some_and(|(local, domain)| {
            !local.is_empty() && !local.contains('@') && !domain.is_empty() && !domain.starts_with('.')
        })
}
