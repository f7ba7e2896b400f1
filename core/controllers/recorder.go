package controllers

import (
	"sync/atomic"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
)

// recorder is a component's event recorder that records from Run on, as the
// machinery behind it has goroutines.
type recorder struct {
	component string
	to        atomic.Pointer[record.EventRecorder]
}

func (r *recorder) connect(to record.EventRecorder) { r.to.Store(&to) }

func (r *recorder) Event(object runtime.Object, kind, reason, message string) {
	if to := r.to.Load(); to != nil {
		(*to).Event(object, kind, reason, message)
	}
}

func (r *recorder) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	if to := r.to.Load(); to != nil {
		(*to).Eventf(object, kind, reason, format, args...)
	}
}

func (r *recorder) AnnotatedEventf(object runtime.Object, annotations map[string]string, kind, reason, format string, args ...any) {
	if to := r.to.Load(); to != nil {
		(*to).AnnotatedEventf(object, annotations, kind, reason, format, args...)
	}
}
