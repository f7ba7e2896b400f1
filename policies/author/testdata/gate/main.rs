#![no_std]

use qm::{column, Buffer, Global, Level, Message, Pod, Read, Snapshot, Text, PASS};

qm::policy! { filter: filter }

static ROOM: Global<Buffer> = Global::new(Buffer::new());

fn filter(pod: &Pod, nodes: &Snapshot, verdicts: &mut [u8]) -> Result<(), &'static str> {
    qm::log(Level::Info, "asked");
    let mut room = ROOM.get();
    let open = match qm::get("configmaps", pod.namespace().text, "gate", &mut room) {
        Read::Found(map) => Message(map).entry(2, "open").map_or(false, |v| v.as_str() == "true"),
        Read::Missing => true,
        Read::Refused => return Err("the read is refused"),
    };
    ROOM.set(room);
    if open {
        return Ok(());
    }
    for (row, &symbol) in nodes.u32s(column::NAME).iter().enumerate() {
        if verdicts[row] != PASS {
            continue;
        }
        verdicts[row] = 1;
        let mut name = [0; 64];
        let n = qm::sym_text(symbol, &mut name);
        let mut why = Text::<128>::new();
        why.push(Message(&name[..n]).as_str()).push(" closed at ").push_number(qm::now());
        qm::reason(row, why.as_str());
    }
    Ok(())
}
