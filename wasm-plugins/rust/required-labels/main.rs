//! required-labels refuses objects without the labels that the configuration
//! names, and gives them the default where it has one:
//! {"labels": {"team": null, "tier": "standard"}}.
#![no_std]

use qm::{Answer, Buffer, Global, Json, Kind, Review, Text};

qm::policy! { configure: configure, admit: admit }

static CONFIG: Global<Buffer> = Global::new(Buffer::new());

fn configure(config: Json) -> Result<(), &'static str> {
    let labels = config.member("labels");
    if labels.items().next().is_none() {
        return Err("labels is needed: an object of names and defaults, null where there is none");
    }
    if !labels.elements().all(|v| matches!(v.kind(), Kind::Null | Kind::String)) {
        return Err("a default is text or null");
    }
    let mut kept = CONFIG.get();
    kept.clear();
    kept.push(labels.raw());
    CONFIG.set(kept);
    Ok(())
}

fn admit(review: Review, answer: &mut Answer) -> Result<(), &'static str> {
    let object = review.object();
    if object.kind() != Kind::Object {
        return Ok(()); // a deletion
    }
    let config = CONFIG.get();
    let has = object.at(&["metadata", "labels"]);
    let mut none = has.kind() != Kind::Object;
    for (name, default) in Json::parse(config.bytes()).items() {
        let name = name.text::<317>().ok_or("the name of a label is too long")?;
        if has.member(name.as_str()).kind() == Kind::String {
            continue;
        }
        if default.kind() == Kind::Null {
            answer.deny(403, Text::<512>::new().push("the label ").push(name.as_str()).push(" is needed").as_str());
            return Ok(());
        }
        if none {
            none = false;
            answer.patch().add(&["metadata", "labels"], &Json::parse(b"{}"));
        }
        answer.patch().add(&["metadata", "labels", name.as_str()], &default);
    }
    Ok(())
}
