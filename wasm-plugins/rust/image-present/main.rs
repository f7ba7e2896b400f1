//! image-present lets a pod onto the nodes only that hold all its images, for
//! clusters that cannot pull. Pods with the annotation
//! quaymaster.dev/may-pull may go anywhere. It is of the row tier.
#![no_std]

use qm::{reason, Global, NodeView, PodView, Text, PASS};

qm::policy! { prefilter: prefilter, filter_node: filter }

const REASON_IMAGE: u8 = 1; // the first of the manifest's reasons

static MAY_PULL: Global<bool> = Global::new(false);

fn prefilter(pod: PodView) -> Result<(), &'static str> {
    MAY_PULL.set(pod.annotation("quaymaster.dev/may-pull").is_some());
    Ok(())
}

fn filter(pod: PodView, node: NodeView) -> Result<u8, &'static str> {
    if MAY_PULL.get() {
        return Ok(PASS);
    }
    for container in pod.init_containers().chain(pod.containers()) {
        let image = container.image();
        if !node.images().any(|name| same(name, image)) {
            reason(0, Text::<256>::new().push("node(s) do not hold the image ").push(image).as_str());
            return Ok(REASON_IMAGE);
        }
    }
    Ok(PASS)
}

/// Nodes report full names: docker.io/library/web:1 is what a pod calls web:1.
fn same(name: &str, image: &str) -> bool {
    name == image || name.strip_suffix(image).map_or(false, |registry| registry.ends_with('/'))
}
