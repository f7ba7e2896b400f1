import { Text, text, is } from "./text";

/** A string of the pod's record, whose text the pod knows. */
@unmanaged
export class Word {
  /** 0 when no node has the string. */
  symbol: u32;
  offset: u32;
  length: u32;
}

/** Key and value. */
@unmanaged
export class Pair {
  private keySymbol: u32;
  private keyOffset: u32;
  private keyLength: u32;
  private valueSymbol: u32;
  private valueOffset: u32;
  private valueLength: u32;

  @inline
  get key(): Word {
    return changetype<Word>(this);
  }
  @inline
  get value(): Word {
    return changetype<Word>(changetype<usize>(this) + 12);
  }
}

@unmanaged
export class Toleration extends Pair {
  private effectSymbol: u32;
  private effectOffset: u32;
  private effectLength: u32;
  /** 0 `Equal`, 1 `Exists`, 2 another. */
  operation: u32;

  @inline
  get effect(): Word {
    return changetype<Word>(changetype<usize>(this) + 24);
  }
}

/** An extended resource that is requested. */
@unmanaged
export class Amount {
  private nameSymbol: u32;
  private nameOffset: u32;
  private nameLength: u32;
  private reserved: u32;
  amount: i64;

  @inline
  get name(): Word {
    return changetype<Word>(this);
  }
}

/** A list in the pod's record: where it begins, and how long it is. */
@unmanaged
export class Records<T> {
  offset: u32;
  count: u32;
}

/** The record of the pod that is decided on. */
@unmanaged
export class Pod {
  magic: u32;
  size: u32;
  priority: i32;
  reserved: u32;
  /** Requested, in thousandths of a CPU, then in bytes. */
  cpu: i64;
  memory: i64;
  ephemeralStorage: i64;
  /** With 100 thousandths and 200 MiB for each container that requests none. */
  nonZeroCPU: i64;
  nonZeroMemory: i64;

  @inline
  private at(offset: usize): usize {
    return changetype<usize>(this) + offset;
  }

  /** The text of a word of this pod. */
  text(w: Word): Text {
    return text(this.at(w.offset), w.length);
  }
  /** Entry i of a list of this pod. */
  @inline
  entry<T>(list: Records<T>, i: u32): T {
    return changetype<T>(this.at(list.offset) + i * offsetof<T>());
  }

  get name(): Word {
    return changetype<Word>(this.at(56));
  }
  get namespace(): Word {
    return changetype<Word>(this.at(68));
  }
  /** By key, as annotations and the node selector. */
  get labels(): Records<Pair> {
    return changetype<Records<Pair>>(this.at(80));
  }
  get annotations(): Records<Pair> {
    return changetype<Records<Pair>>(this.at(88));
  }
  get nodeSelector(): Records<Pair> {
    return changetype<Records<Pair>>(this.at(96));
  }
  get tolerations(): Records<Toleration> {
    return changetype<Records<Toleration>>(this.at(104));
  }
  /** Extended resources, by name. */
  get extended(): Records<Amount> {
    return changetype<Records<Amount>>(this.at(112));
  }
  /** Of the containers. */
  get images(): Records<Word> {
    return changetype<Records<Word>>(this.at(120));
  }
  /** The pod's protobuf; 0 unless the manifest has `rawPod`. */
  get raw(): Text {
    const length = load<u32>(this.at(132));
    return length ? text(this.at(load<u32>(this.at(128))), length) : 0;
  }

  /** The value of a pair with that key, null when there is none. */
  value(list: Records<Pair>, key: string): Word | null {
    for (let i: u32 = 0; i < list.count; i++) {
      const pair = this.entry<Pair>(list, i);
      if (is(this.text(pair.key), key)) return pair.value;
    }
    return null;
  }
  label(key: string): Word | null {
    return this.value(this.labels, key);
  }
  annotation(key: string): Word | null {
    return this.value(this.annotations, key);
  }
}
