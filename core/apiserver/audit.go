package apiserver

import (
	"fmt"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	auditlog "k8s.io/apiserver/plugin/pkg/audit/log"
)

// Audit says which requests are logged, and where.
type Audit struct {
	// Policy is a file with a Policy of audit.k8s.io/v1.
	Policy string
	// Log is the file that takes the events, one JSON object a line, in the order
	// in which they happen and before the request is answered. It has mode 0600.
	Log string
	// MaxBytes of the file, default 100 MiB: then it is renamed to Log.1, and
	// older ones to Log.2 and so on.
	MaxBytes int64
	// Keep is how many renamed files there are at most, default 10.
	Keep int
}

const (
	auditBytes = 100 << 20
	auditKeep  = 10
)

// newAudit opens the log.
func (s *Server) newAudit() error {
	o := s.options.Audit
	if o == nil {
		return nil
	}
	if o.Policy == "" || o.Log == "" {
		return fmt.Errorf("audit: a policy file and a log file are needed, have %q and %q", o.Policy, o.Log)
	}
	rules, err := policy.LoadPolicyFromFile(o.Policy)
	if err != nil {
		return fmt.Errorf("audit policy: %w", err)
	}
	limit, keep := o.MaxBytes, o.Keep
	if limit <= 0 {
		limit = auditBytes
	}
	if keep <= 0 {
		keep = auditKeep
	}
	if s.auditFile, err = openRotated(o.Log, limit, keep); err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	s.auditRules = policy.NewPolicyRuleEvaluator(rules)
	s.auditBackend = auditlog.NewBackend(s.auditFile, auditlog.FormatJson, auditv1.SchemeGroupVersion)
	return nil
}

// auditing is what the server keeps of it; all nil without an audit.
type auditing struct {
	auditFile    *rotated
	auditRules   audit.PolicyRuleEvaluator
	auditBackend audit.Backend
}

func (a *auditing) closeAudit() error {
	if a.auditFile == nil {
		return nil
	}
	return a.auditFile.Close()
}
