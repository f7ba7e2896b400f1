package storage

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A backup is a stream of records between a head and a trailer:
//
//	file    "quaymaster-backup\n", format number (2 bytes), records
//	record  kind (1), length of the payload (4), payload, checksum (4)
//	h       head, the first: identity of the store (16), since, revision, time of
//	        its making in milliseconds since 1970 (signed); of format 2 the length
//	        of the key's name and the name
//	l       lease: id (8), seconds granted (8), end in milliseconds (8), big-endian
//	p       put: revision, length of the key, key, then as stored: revision of the
//	        creation, version, lease, value
//	d       deletion: revision, length of the key, key
//	t       trailer, the last: how many records came before
//	e       a part of what sealer made; format 2 has these between head and trailer
//
// Numbers without a size are unsigned varints, with one little-endian unless said
// otherwise. The checksum is CRC-32C over kind, length and payload, begun with
// the checksum of the record before: one that is missing or misplaced shows. A
// full backup has the puts of every key that exists at its revision, in order of
// the keys, and since is 0. An increment has every change after since up to
// revision, in order of the revisions.
const (
	backupMagic  = "quaymaster-backup\n"
	plainFormat  = 1
	sealedFormat = 2
	recordFrame  = 1 + 4 // kind and length ahead of the payload
	maxPayload   = MaxKey + MaxValue + 64

	recordHead    = 'h'
	recordLease   = 'l'
	recordPut     = 'p'
	recordDelete  = 'd'
	recordTrailer = 't'
	recordSealed  = 'e'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(sum uint32, data []byte) uint32 { return crc32.Update(sum, castagnoli, data) }

// Info is what a backup says of itself, or for several what they hold together.
type Info struct {
	Store    [16]byte // identity of the store it was made of
	Since    int64    // 0: full
	Revision int64    // the state that it leads to
	Created  time.Time
	Changes  int64 // keys of a full backup, changes of an increment
	Bytes    int64
	Key      string // name of the key that the last of them is encrypted with, "" when none
}

// encoder makes records in memory until flush.
type encoder struct {
	w     io.Writer
	buf   []byte
	sum   uint32
	count uint64
	begin int
}

func (e *encoder) open(kind byte) {
	e.begin = len(e.buf)
	e.buf = append(e.buf, kind, 0, 0, 0, 0)
}

func (e *encoder) close() {
	payload := len(e.buf) - e.begin - recordFrame
	binary.LittleEndian.PutUint32(e.buf[e.begin+1:], uint32(payload))
	e.sum = crc(e.sum, e.buf[e.begin:])
	e.buf = binary.LittleEndian.AppendUint32(e.buf, e.sum)
	e.count++
}

func (e *encoder) head(info *Info) {
	e.buf = append(e.buf, backupMagic...)
	format := uint16(plainFormat)
	if info.Key != "" {
		format = sealedFormat
	}
	e.buf = binary.LittleEndian.AppendUint16(e.buf, format)
	e.open(recordHead)
	e.buf = append(e.buf, info.Store[:]...)
	e.buf = binary.AppendUvarint(e.buf, uint64(info.Since))
	e.buf = binary.AppendUvarint(e.buf, uint64(info.Revision))
	e.buf = binary.AppendVarint(e.buf, info.Created.UnixMilli())
	if format == sealedFormat {
		e.buf = appendBytes(e.buf, []byte(info.Key))
	}
	e.close()
}

func (e *encoder) lease(id, ttl int64, expiry time.Time) {
	e.open(recordLease)
	e.buf = binary.BigEndian.AppendUint64(e.buf, uint64(id))
	e.buf = append(e.buf, encodeLease(ttl, expiry)...)
	e.close()
}

func (e *encoder) put(kv *mvccpb.KeyValue) {
	e.open(recordPut)
	e.buf = binary.AppendUvarint(e.buf, uint64(kv.ModRevision))
	e.buf = appendBytes(e.buf, kv.Key)
	e.buf = appendRecord(e.buf, kv)
	e.close()
}

func (e *encoder) delete(key string, rev int64) {
	e.open(recordDelete)
	e.buf = binary.AppendUvarint(e.buf, uint64(rev))
	e.buf = appendBytes(e.buf, []byte(key))
	e.close()
}

func (e *encoder) trailer() {
	count := e.count
	e.open(recordTrailer)
	e.buf = binary.AppendUvarint(e.buf, count)
	e.close()
}

func (e *encoder) flush() error {
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:0]
	return err
}

// restored is a lease or a change from a backup.
type restored struct {
	pending
	lease  int64  // 0: a change
	expiry []byte // what encodeLease made
}

// decoder reads one backup.
type decoder struct {
	r     *bufio.Reader
	info  Info
	sum   uint32
	count uint64
	done  int64 // changes up to here are known from the file before
	last  pending
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

func (d *decoder) read(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	d.info.Bytes += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it is cut short after %d bytes", d.info.Bytes)
	}
	return err
}

// record gives the next record's kind and payload, which may be kept.
func (d *decoder) record() (kind byte, payload []byte, err error) {
	var frame [recordFrame]byte
	if err := d.read(frame[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(frame[1:])
	if n > maxPayload {
		return 0, nil, damaged("record %d claims %d bytes", d.count+1, n)
	}
	data := make([]byte, int(n)+4)
	if err := d.read(data); err != nil {
		return 0, nil, err
	}
	payload = data[:n:n]
	d.sum = crc(crc(d.sum, frame[:]), payload)
	d.count++
	if got := binary.LittleEndian.Uint32(data[n:]); got != d.sum {
		return 0, nil, damaged("record %d, before byte %d, has checksum %08x, not %08x", d.count, d.info.Bytes, got, d.sum)
	}
	return frame[0], payload, nil
}

func (d *decoder) head() error {
	magic := make([]byte, len(backupMagic)+2)
	err := d.read(magic)
	if begins := magic[:min(d.info.Bytes, int64(len(backupMagic)))]; !strings.HasPrefix(backupMagic, string(begins)) {
		return damaged("it does not begin as a backup does")
	}
	if err != nil {
		return err
	}
	format := binary.LittleEndian.Uint16(magic[len(backupMagic):])
	if format == 0 || format > sealedFormat {
		return fmt.Errorf("%w: its format is %d, this one knows up to %d; use that version", ErrNewerFormat, format, sealedFormat)
	}
	kind, payload, err := d.record()
	if err != nil {
		return err
	}
	if kind != recordHead || len(payload) < len(d.info.Store) {
		return damaged("its head is missing")
	}
	n := copy(d.info.Store[:], payload)
	since, payload, ok1 := takeNumber(payload[n:])
	revision, payload, ok2 := takeNumber(payload)
	created, size := binary.Varint(payload)
	if !ok1 || !ok2 || size <= 0 || since > revision || revision < 1 {
		return damaged("its head makes no sense")
	}
	var key []byte
	payload = payload[size:]
	if format == sealedFormat {
		if key, payload, err = takeBytes(payload); err != nil || len(key) == 0 {
			return damaged("its head names no key")
		}
	}
	if len(payload) > 0 {
		return damaged("its head makes no sense")
	}
	d.info.Key = string(key)
	d.info.Since, d.info.Revision, d.info.Created = since, revision, time.UnixMilli(created)
	return nil
}

// records reads up to the trailer and the end of the file.
func (d *decoder) records(do func(*restored) error) error {
	for {
		kind, payload, err := d.record()
		if err != nil {
			return err
		}
		r := &restored{}
		switch kind {
		case recordTrailer:
			return d.end(payload)
		case recordLease:
			if len(payload) != 24 {
				return damaged("record %d makes no sense", d.count)
			}
			r.lease, r.expiry = int64(binary.BigEndian.Uint64(payload)), payload[8:]
		case recordPut, recordDelete:
			if err := d.change(r, kind, payload); err != nil {
				return err
			}
			d.info.Changes++
			if r.rev <= d.done {
				continue
			}
		default:
			return damaged("record %d is of the unknown kind %q", d.count, kind)
		}
		if err := do(r); err != nil {
			return err
		}
	}
}

// end checks the trailer and that nothing follows it.
func (d *decoder) end(trailer []byte) error {
	n, rest, ok := takeNumber(trailer)
	if !ok || len(rest) > 0 || uint64(n) != d.count-1 {
		return damaged("its trailer counts %d records, there are %d", n, d.count-1)
	}
	switch _, err := d.r.ReadByte(); {
	case err == nil:
		return damaged("something follows its end at byte %d", d.info.Bytes)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

func (d *decoder) change(r *restored, kind byte, payload []byte) error {
	rev, payload, ok := takeNumber(payload)
	key, record, err := takeBytes(payload)
	if !ok || err != nil || len(key) == 0 || len(key) > MaxKey {
		return damaged("record %d makes no sense", d.count)
	}
	r.rev, r.key = rev, string(key)
	if kind == recordPut {
		if r.kv, err = decodeRecord(r.key, rev, record); err != nil {
			return damaged("record %d: %w", d.count, err)
		}
	}
	ordered := r.key > d.last.key
	if d.info.Since > 0 {
		ordered = rev > d.last.rev || rev == d.last.rev && r.key != d.last.key
	}
	if rev <= d.info.Since || rev > d.info.Revision || !ordered || kind == recordDelete && d.info.Since == 0 {
		return damaged("record %d, %s at revision %d, is out of place", d.count, r.key, rev)
	}
	d.last.key, d.last.rev = r.key, rev
	return nil
}

func takeNumber(b []byte) (n int64, rest []byte, ok bool) {
	u, size := binary.Uvarint(b)
	if size <= 0 || int64(u) < 0 {
		return 0, nil, false
	}
	return int64(u), b[size:], true
}
