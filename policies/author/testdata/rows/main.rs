#![no_std]

use qm::{NodeView, PodView, PASS};

qm::policy! { filter_node: filter, score_node: score }

fn filter(pod: PodView, node: NodeView) -> Result<u8, &'static str> {
    Ok(match node.label("team") {
        Some(team) if pod.label("team") != Some(team) => 1,
        _ => PASS,
    })
}

fn score(pod: PodView, node: NodeView) -> Result<i32, &'static str> {
    Ok(if node.label("team") == pod.label("team") { 100 } else { 0 })
}
