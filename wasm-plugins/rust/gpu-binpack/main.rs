//! gpu-binpack fills the nodes with GPUs one after the other, and keeps the pods
//! that want none off them.
//!
//! Configuration: {"shared": true} lets other pods onto nodes with GPUs, as the
//! last choice. It is of the column tier.
#![no_std]

use qm::{column, Global, Json, Kind, Pod, Snapshot, PASS};

qm::policy! { configure: configure, filter: filter, score: score }

const REASON_NO_GPU: u8 = 1; // the manifest's reasons
const REASON_KEPT: u8 = 2;

const RESOURCE: &str = "nvidia.com/gpu";
const ALLOCATABLE: u16 = column::EXTENDED; // in the manifest's order
const REQUESTED: u16 = column::EXTENDED + 1;

static SHARED: Global<bool> = Global::new(false);

fn configure(config: Json) -> Result<(), &'static str> {
    for (key, value) in config.items() {
        match value.bool() {
            Some(shared) if key.is("shared") => SHARED.set(shared),
            _ => return Err("want {\"shared\": true} or {\"shared\": false}"),
        }
    }
    if config.kind() != Kind::Object {
        return Err("the configuration is no object");
    }
    Ok(())
}

fn wanted(pod: &Pod) -> i64 {
    pod.extended().find(|(name, _)| name.text == RESOURCE).map_or(0, |(_, amount)| amount)
}

fn filter(pod: &Pod, nodes: &Snapshot, verdicts: &mut [u8]) -> Result<(), &'static str> {
    let (want, shared) = (wanted(pod), SHARED.get());
    let gpus = nodes.i64s(ALLOCATABLE).iter().zip(nodes.i64s(REQUESTED));
    for (verdict, (&all, &used)) in verdicts.iter_mut().zip(gpus) {
        if *verdict != PASS {
            continue;
        }
        if want > 0 && all - used < want {
            *verdict = REASON_NO_GPU;
        } else if want == 0 && all > 0 && !shared {
            *verdict = REASON_KEPT;
        }
    }
    Ok(())
}

fn score(pod: &Pod, nodes: &Snapshot, verdicts: &[u8], scores: &mut [i32]) -> Result<(), &'static str> {
    let want = wanted(pod);
    let gpus = nodes.i64s(ALLOCATABLE).iter().zip(nodes.i64s(REQUESTED));
    for ((score, &verdict), (&all, &used)) in scores.iter_mut().zip(verdicts).zip(gpus) {
        if verdict != PASS {
            continue;
        }
        *score = match (want, all) {
            (0, 0) => 100,
            (0, _) | (_, 0) => 0,
            _ => (100 * (used + want) / all).min(100) as i32, // the fuller, the better
        };
    }
    Ok(())
}
