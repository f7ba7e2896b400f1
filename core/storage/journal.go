package storage

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// journal is where a batch becomes durable, with one flush, before it is
// acknowledged: Badger needs two, of files that grow. Two files, of a size that is
// reserved beforehand, take turns; each begins anew when Badger has what it held.
// A file is a head and records, each at a multiple of eight bytes:
//
//	head    magic, format, salt, checksum
//	record  checksum, length, number, and as many bytes as the length says
//
// The salt is new each time that a file begins and goes into every checksum: what
// the file held before is no record, nor is what a client makes up. Numbers rise
// by one through both files. In an encrypted store the bytes are sealed by
// AES-256-GCM, with a key made of the journal's and the salt.
type journal struct {
	dir   string
	key   []byte // nil in the clear
	size  int64  // of a file
	files [2]*logFile
	at    int    // of the file in use
	next  uint64 // number of the next record
	flush func(*os.File) error
	buf   []byte
}

// logFile is one of the two. offset is where the next record goes; last is the
// number of the last one.
type logFile struct {
	*os.File
	salt   [saltSize]byte
	aead   cipher.AEAD // nil in the clear
	offset int64
	last   uint64
}

const (
	journalMagic  = "quayjrnl"
	journalFormat = 1
	saltSize      = 32
	journalHead   = 48 // 8, 4 of which one is used, 32, 4
	frameHead     = 16 // 4, 4, 8
	journalSize   = 8 << 20
	journalPeak   = 1 << 30 // of a record
)

func journalFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("journal-%d", i)) }

// openJournal makes an empty one of what was read and is in Badger now. newest is
// the file with the last record.
func openJournal(dir string, key []byte, newest int) (*journal, error) {
	j := &journal{dir: dir, key: key, size: journalSize, next: 1, flush: flush, at: newest}
	for _, i := range j.oldestFirst() {
		file, err := os.OpenFile(journalFile(dir, i), os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			j.files[i] = &logFile{File: file}
			err = j.files[i].empty()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("storage: %w", err), j.close(false))
		}
	}
	return j, nil
}

// append makes a batch durable and gives its record's number. Before a file
// begins anew it calls idle, which returns when Badger has all up to a number.
// After ErrTooLarge and ErrNoSpace nothing has changed.
func (j *journal) append(changes []*pending, m *mark, idle func(number uint64) error) (uint64, error) {
	b := appendBatch(append(j.buf[:0], make([]byte, frameHead)...), changes, m)
	j.buf = b
	if len(b) > journalPeak {
		return 0, fmt.Errorf("%w: a batch of %d MiB, %d are allowed", ErrTooLarge, len(b)>>20, journalPeak>>20)
	}
	f := j.files[j.at]
	if f == nil || f.offset == 0 || f.offset+int64(len(b)) > j.size && f.offset > journalHead {
		var err error
		if f, err = j.turn(idle); err != nil {
			return 0, fmt.Errorf("storage: journal: %w", err)
		}
	}
	if f.aead != nil {
		b = f.aead.Seal(b[:frameHead], f.nonce(j.next), b[frameHead:], nil)
	}
	b = f.frame(b, j.next)
	if j.buf = b; cap(b) > 2*journalSize {
		j.buf = nil
	}
	if _, err := f.WriteAt(b, f.offset); err != nil {
		return 0, fmt.Errorf("storage: journal: %w", err)
	}
	if err := j.flush(f.File); err != nil {
		return 0, fmt.Errorf("storage: flush %s: %w", f.Name(), err)
	}
	f.offset += int64(len(b))
	f.last = j.next
	j.next++
	return f.last, nil
}

// turn begins the other file, or the first.
func (j *journal) turn(idle func(number uint64) error) (*logFile, error) {
	next := j.at
	if f := j.files[next]; f != nil && f.offset > 0 {
		next = 1 - next
	}
	f := j.files[next]
	if f == nil {
		file, err := os.OpenFile(journalFile(j.dir, next), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err = reserve(file, j.size); err == nil {
			err = errors.Join(file.Sync(), syncDir(j.dir))
		}
		if err != nil {
			return nil, fmt.Errorf("reserve %s: %w", file.Name(), errors.Join(err, file.Close()))
		}
		f = &logFile{File: file}
		j.files[next] = f
	} else if err := idle(f.last); err != nil {
		return nil, err
	}
	if f.offset > 2*j.size { // of one long record
		if err := f.Truncate(j.size); err != nil {
			return nil, err
		}
	}
	rand.Read(f.salt[:])
	if err := f.unlock(j.key); err != nil {
		return nil, err
	}
	// Durable before the first record: a power cut leaves the old head with all
	// that the file held, or the new one with nothing. A sector is written whole.
	if _, err := f.WriteAt(f.head(), 0); err != nil {
		return nil, err
	}
	f.offset, j.at = journalHead, next
	return f, f.Sync()
}

// oldestFirst is the order in which the files are emptied. Were the newest
// emptied first and the other not, that one's would be stored again: a value
// whose deletion has been compacted meanwhile would come back.
func (j *journal) oldestFirst() [2]int { return [2]int{1 - j.at, j.at} }

// close closes the files. If Badger has everything, they are emptied.
func (j *journal) close(done bool) (err error) {
	for _, i := range j.oldestFirst() {
		f := j.files[i]
		if f == nil {
			continue
		}
		if done && f.offset > 0 {
			err = errors.Join(err, f.empty())
		}
		err = errors.Join(err, f.Close())
		j.files[i] = nil
	}
	return err
}

func (f *logFile) empty() error {
	if _, err := f.WriteAt(make([]byte, journalHead), 0); err != nil {
		return err
	}
	f.offset = 0
	return f.Sync()
}

func (f *logFile) unlock(key []byte) error {
	f.aead = nil
	if key == nil {
		return nil
	}
	derived, err := hkdf.Key(sha256.New, key, f.salt[:], "quaymaster journal", keySize)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(derived)
	if err == nil {
		f.aead, err = cipher.NewGCM(block)
	}
	return err
}

// nonce is a record's number: no two have the same under one salt.
func (f *logFile) nonce(number uint64) []byte {
	return binary.LittleEndian.AppendUint64(make([]byte, 4, 12), number)
}

func (f *logFile) head() []byte {
	b := make([]byte, journalHead)
	copy(b, journalMagic)
	b[8] = journalFormat
	copy(b[12:], f.salt[:])
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
	return b
}

// frame completes a record and fills it up to where the next one begins.
func (f *logFile) frame(b []byte, number uint64) []byte {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-frameHead))
	binary.LittleEndian.PutUint64(b[8:], number)
	binary.LittleEndian.PutUint32(b, f.checksum(b))
	return append(b, make([]byte, -len(b)&7)...)
}

func (f *logFile) checksum(record []byte) uint32 {
	return crc32.Update(crc32.Checksum(f.salt[:], castagnoli), castagnoli, record[4:])
}

// record gives the number and the bytes of the record that b begins with, ok
// only if it is whole.
func (f *logFile) record(b []byte) (number uint64, data []byte, ok bool) {
	if len(b) < frameHead {
		return 0, nil, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n == 0 || uint64(n) > uint64(len(b)-frameHead) {
		return 0, nil, false
	}
	b = b[:frameHead+n]
	return binary.LittleEndian.Uint64(b[8:]), b[frameHead:], binary.LittleEndian.Uint32(b) == f.checksum(b)
}

// kept are the records of a file, in order, the first of which has a number.
type kept struct {
	first   uint64
	records [][]byte
}

// readJournal gives what Badger may lack, and which file has the last of it.
func readJournal(dir string, key []byte) (records [][]byte, newest int, err error) {
	var files [2]kept
	for i := range files {
		path := journalFile(dir, i)
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, 0, fmt.Errorf("storage: %w", err)
		}
		if files[i], err = readLog(b, key); err != nil {
			return nil, 0, fmt.Errorf("storage: journal %s: %w", path, err)
		}
	}
	a, b, newest := files[0], files[1], 1
	if a.first >= b.first { // equal only if neither has one
		a, b, newest = b, a, 0
	}
	if len(a.records) > 0 && a.first+uint64(len(a.records)) != b.first {
		return nil, 0, fmt.Errorf("storage: journal of %s: %w: records %d to %d are missing", dir, errRecord, a.first+uint64(len(a.records)), b.first-1)
	}
	return append(a.records, b.records...), newest, nil
}

// readLog reads a file. A last record that is not whole was never acknowledged
// and is left out; one with others behind it was damaged later.
func readLog(b, key []byte) (k kept, err error) {
	if len(b) < journalHead || [journalHead]byte(b) == [journalHead]byte{} {
		return k, nil
	}
	if string(b[:8]) != journalMagic || binary.LittleEndian.Uint32(b[44:]) != crc32.Checksum(b[:44], castagnoli) {
		return k, fmt.Errorf("%w: the head", errRecord)
	}
	if b[8] != journalFormat {
		return k, fmt.Errorf("%w: its format is %d, this one knows %d", ErrNewerFormat, b[8], journalFormat)
	}
	f := &logFile{salt: [saltSize]byte(b[12:])}
	if err := f.unlock(key); err != nil {
		return k, err
	}
	at := journalHead
	for {
		number, data, ok := f.record(b[at:])
		if !ok || len(k.records) > 0 && number != k.first+uint64(len(k.records)) {
			break
		}
		at = min(at+frameHead+(len(data)+7)&^7, len(b))
		if f.aead != nil {
			if data, err = f.aead.Open(nil, f.nonce(number), data, nil); err != nil {
				return k, fmt.Errorf("%w: record %d: %w", errRecord, number, err)
			}
		}
		if len(k.records) == 0 {
			k.first = number
		}
		k.records = append(k.records, data)
	}
	for i := at; i < len(b); i += 8 {
		if number, _, ok := f.record(b[i:]); ok {
			return k, fmt.Errorf("%w: at byte %d, before record %d", errRecord, at, number)
		}
	}
	return k, nil
}

// appendBatch is what a record holds: the time, if it is marked, and the changes.
func appendBatch(b []byte, changes []*pending, m *mark) []byte {
	if m == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = binary.AppendUvarint(b, uint64(m.rev))
		b = appendBytes(b, encodeMark(*m))
	}
	return appendChanges(b, changes)
}

func decodeBatch(b []byte) (changes []*pending, m *mark, err error) {
	if len(b) == 0 || b[0] > 1 {
		return nil, nil, errRecord
	}
	marked, b := b[0] == 1, b[1:]
	if marked {
		rev, rest, ok := takeNumber(b)
		if !ok {
			return nil, nil, errRecord
		}
		var data []byte
		if data, b, err = takeBytes(rest); err != nil {
			return nil, nil, err
		}
		one, err := decodeMark(markKey(rev), data)
		if err != nil {
			return nil, nil, err
		}
		m = &one
	}
	if changes, err = decodeChanges(b); err == nil && len(changes) == 0 {
		err = errRecord
	}
	return changes, m, err
}
