package policies

import (
	"context"
	"time"
)

// UnitTester is an engine whose programs can have tests of their own language.
type UnitTester interface {
	// TestUnits runs the tests of a source: those in it, and those in the files of
	// tests, by name. None is no error, and has no coverage.
	TestUnits(ctx context.Context, l Load, tests map[string][]byte) ([]UnitTest, *Coverage, error)
}

// UnitTest is the result of one.
type UnitTest struct {
	Package, Name string
	File          string
	Line          int
	Passed        bool
	Skipped       bool   // its name says that it is not to run
	Failure       string // what it ended with, when it is an error or an expression is known
	Duration      time.Duration
}

// Coverage of the lines of files by tests.
type Coverage struct {
	// Percent of the lines with an expression that tests evaluated.
	Percent float64
	Files   map[string]FileCoverage
}

// FileCoverage has line numbers.
type FileCoverage struct {
	Percent    float64
	NotCovered []int // ascending
}
