import { fail } from "./host";

/** Columns by id. Extended resources follow from `Extended` in the order of the
 * manifest. */
export namespace columns {
  export const Flags: u16 = 1, Name: u16 = 2, Zone: u16 = 3, Region: u16 = 4;
  export const AllocatableCPU: u16 = 16, AllocatableMemory: u16 = 17, AllocatableEphemeralStorage: u16 = 18, AllocatablePods: u16 = 19;
  export const RequestedCPU: u16 = 32, RequestedMemory: u16 = 33, RequestedEphemeralStorage: u16 = 34, RequestedPods: u16 = 35;
  export const NonZeroCPU: u16 = 48, NonZeroMemory: u16 = 49;
  /** Labels are pairs of symbols, taints triples: key, value, effect. */
  export const Labels: u16 = 64, Taints: u16 = 65, Images: u16 = 66;
  export const Extended: u16 = 256;
  /** Bits of `Flags`. */
  export const Present: u32 = 1, Unschedulable: u32 = 2, Ready: u32 = 4;
}

/** Verdicts with a meaning of their own; 1 to 249 index the manifest's reasons. */
export const Pass: u8 = 0, Unresolvable: u8 = 250, Skip: u8 = 255;

/** Numbers, one a row. */
@unmanaged
export class Column<T> {
  @inline
  @operator("[]")
  get(row: u32): T {
    return load<T>(changetype<usize>(this) + (<usize>row << alignof<T>()));
  }
  @inline
  @operator("[]=")
  set(row: u32, value: T): void {
    store<T>(changetype<usize>(this) + (<usize>row << alignof<T>()), value);
  }
}

export type Verdicts = Column<u8>;
export type Scores = Column<i32>;

/** A column of lists of symbols. */
@unmanaged
export class Lists {
  @inline
  offset(row: u32): u32 {
    return load<u32>(changetype<usize>(this) + (<usize>row << 3));
  }
  @inline
  count(row: u32): u32 {
    return load<u32>(changetype<usize>(this) + (<usize>row << 3), 4);
  }
}

/** The fleet in columns. */
@unmanaged
export class Snapshot {
  magic: u32;
  minor: u16;
  columns: u16;
  /** Vacant ones included. */
  rows: u32;
  capacity: u32;
  /** Differs when anything in the fleet does. */
  generation: u64;
  /** Differs when the numbers of symbols do. */
  epoch: u32;
  reserved: u32;

  /** The address of a column, 0 when the manifest does not name it. */
  find(id: u16): usize {
    const base = changetype<usize>(this);
    for (let i: u32 = 0; i < this.columns; i++) {
      const d = base + 32 + 12 * i;
      if (load<u16>(d) == id) return base + load<u32>(d, 4);
    }
    return 0;
  }

  private need(id: u16): usize {
    const at = this.find(id);
    if (!at) fail("the manifest does not name a column that the policy reads");
    return at;
  }

  /** A column of resources; the call fails when the manifest does not name it. */
  i64s(id: u16): Column<i64> {
    return changetype<Column<i64>>(this.need(id));
  }

  /** A column of flags or symbols; as i64s. */
  u32s(id: u16): Column<u32> {
    return changetype<Column<u32>>(this.need(id));
  }

  /** A column of lists; as i64s. */
  lists(id: u16): Lists {
    return changetype<Lists>(this.need(id));
  }

  /** Entry i of the list of a row. */
  @inline
  entry(lists: Lists, row: u32, i: u32): u32 {
    return load<u32>(changetype<usize>(this) + lists.offset(row) + (<usize>i << 2));
  }

  /** The value that goes with a key in a column of pairs, 0 when there is none. */
  value(lists: Lists, row: u32, key: u32): u32 {
    const n = lists.count(row);
    for (let i: u32 = 0; i < n; i += 2) {
      if (this.entry(lists, row, i) == key) return this.entry(lists, row, i + 1);
    }
    return 0;
  }
}
