"""Remove whole neurons. The neurons are divided into groups: neurons of one group can only be removed together. This
package finds the groups, chooses the least important groups, and removes their neurons."""
