//! Bad queries, paths, methods and ids.

use reqwest::Method;
use serde_json::{Value, json};

use super::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn every_query_parameter_refuses_nonsense() {
    let scene = Scene::new().await;
    let foreign = scene.admin.get("/v1/users?limit=1").await.expect(200);
    let foreign = foreign["next_cursor"].as_str().expect("two users").to_owned();
    for operation in scene.document.operations() {
        let required = operation.required_query(&scene.document);
        for parameter in operation.parameters("query") {
            let name = parameter["name"].as_str().expect("a name");
            let schema = scene.document.flat(&parameter["schema"]);
            let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
            let mut nonsense = match (text("type"), text("format")) {
                ("integer", _) => vec![
                    ("x", "wrong_type"),
                    ("1.5", "wrong_type"),
                    ("", "wrong_type"),
                    ("0", "out_of_range"),
                    ("-1", "out_of_range"),
                    ("101", "out_of_range"),
                    ("9999999999999999999999", "out_of_range"),
                    ("+5", "wrong_type"),
                ],
                ("boolean", _) => vec![("maybe", "wrong_type"), ("1", "wrong_type"), ("", "wrong_type")],
                _ if schema.contains_key("enum") => vec![("nonsense", "not_in_enum"), ("", "not_in_enum")],
                (_, "uuid" | "date-time") => vec![("nonsense", "bad_format"), ("", "bad_format")],
                _ => vec![("a%00b", "bad_character")],
            };
            nonsense.extend(match name {
                "cursor" => vec![
                    ("nonsense", "bad_cursor"),
                    ("", "bad_cursor"),
                    (foreign.as_str(), "bad_cursor"),
                ],
                "delimiter" => vec![("x", "unknown"), ("", "unknown")],
                "encoding" => vec![("nonsense", "unknown")],
                _ => vec![],
            });
            for (value, code) in nonsense {
                if (operation.name().as_str(), value) == ("GET /v1/users", foreign.as_str()) {
                    continue; // its own
                }
                let mut query = format!("{name}={value}");
                for (other, value) in required.iter().filter(|(other, _)| other != name) {
                    let book_id = scene.book_id.to_string();
                    query += &format!("&{other}={}", if other == "book_id" { &book_id } else { value });
                }
                let request = scene.admin.request(
                    operation.method.clone(),
                    &format!("{}?{query}", scene.path(&operation)),
                );
                let answer = scene
                    .admin
                    .send(request.header("Content-Type", "text/csv").body("code\nA\n"))
                    .await;
                let shown = answer.body.to_string();
                assert_eq!(answer.status, 422, "{} ?{query}: {shown}", operation.name());
                answer.invalid(&format!("?{name}"), code);
            }
        }
        let path = scene.path(&operation);
        let nobody = scene.service.nobody();
        let request = nobody.request(operation.method.clone(), &format!("{path}?no_such=1"));
        nobody
            .send(request)
            .await
            .invalid("?no_such", "unknown_parameter");
        if let Some(parameter) = operation.parameters("query").next() {
            let name = parameter["name"].as_str().expect("a name");
            let request = nobody.request(operation.method.clone(), &format!("{path}?{name}=1&{name}=1"));
            nobody
                .send(request)
                .await
                .invalid(&format!("?{name}"), "duplicate");
        }
        for (name, _) in required {
            let request = scene.admin.request(operation.method.clone(), &path);
            scene
                .admin
                .send(request)
                .await
                .invalid(&format!("?{name}"), "required");
        }
    }
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_methods_and_ids_are_refused() {
    let scene = Scene::new().await;
    let nobody = scene.service.nobody();
    for path in [
        "/nope",
        "/v1",
        "/v1/",
        "/v1/nope",
        "/v1/books/",
        "/v2/books",
        "/v1/books/a/b/c",
        "//v1/books",
        "/V1/books",
        "/docs/../v1x",
        "/docs/nope.js",
    ] {
        nobody.get(path).await.refused(404, "not_found");
        nobody.post(path, json!({})).await.refused(404, "not_found");
    }
    let every = ["GET", "PUT", "POST", "DELETE", "PATCH", "TRACE", "FROB"];
    for (template, item) in scene.document.0["paths"].as_object().expect("paths") {
        let mut allowed: Vec<String> = item
            .as_object()
            .expect("methods")
            .keys()
            .map(|method| method.to_uppercase())
            .collect();
        let path = template
            .replace("{id}", &scene.book_id.to_string())
            .replace("{code}", "CODE-1");
        let declared = allowed.clone();
        allowed.push("OPTIONS".to_owned());
        if declared.iter().any(|method| method == "GET") {
            allowed.push("HEAD".to_owned());
        }
        // A fixed path hides no code: GET looks up the coupon that is spelled like it.
        let fixed = template
            .strip_prefix("/v1/coupons/")
            .is_some_and(|rest| !rest.contains('/'));
        if fixed && !declared.iter().any(|method| method == "GET") {
            allowed.extend(["GET", "HEAD"].map(str::to_owned));
        }
        allowed.sort();
        for method in every
            .iter()
            .filter(|method| !allowed.iter().any(|known| known == *method))
        {
            let request = nobody.request(method.parse().expect("a method"), &path);
            let answer = nobody.send(request).await;
            assert_eq!(
                answer.header("allow"),
                Some(allowed.join(", ").as_str()),
                "{method} {path}: {}",
                answer.body
            );
            answer.refused(405, "method_not_allowed");
        }
        let options = nobody.send(nobody.request(Method::OPTIONS, &path)).await;
        assert_eq!(
            (options.status.as_u16(), options.header("allow")),
            (204, Some(allowed.join(", ").as_str()))
        );
    }
    for operation in scene.document.operations() {
        let body = operation.json_body().map(|schema| scene.document.sample(schema));
        let ill = if operation.path.contains("{id}") {
            let spelled = |id: String| {
                vec![
                    "x".to_owned(),
                    "0".to_owned(),
                    "%7B".to_owned() + &id + "%7D",
                    id.replace('-', ""),
                    format!("urn:uuid:{id}"),
                    id + "0",
                    "%00".to_owned(),
                    "%FF".to_owned(),
                ]
            };
            spelled(
                scene
                    .path(&operation)
                    .split('/')
                    .nth(3)
                    .expect("an id")
                    .to_owned(),
            )
        } else if operation.path.contains("{code}") {
            vec![
                "%00".to_owned(),
                "A%00B".to_owned(),
                "%FF".to_owned(),
                "%0A".to_owned(),
                "x".repeat(101),
                "x".repeat(5_000),
                "%20".to_owned(),
                "-".to_owned(),
            ]
        } else {
            continue;
        };
        for ill in ill {
            let path = operation.path.replace("{id}", &ill).replace("{code}", &ill);
            let mut request = scene.admin.request(operation.method.clone(), &path);
            request = match &body {
                Some(body) => request.json(body),
                None => request.header("Content-Type", "text/csv").body("code\nA\n"),
            };
            let answer = scene.admin.send(request).await;
            assert_eq!(answer.status, 404, "{} {path}: {}", operation.method, answer.body);
            answer.refused(404, "not_found");
        }
    }
    scene.service.stop().await;
}
